"""Chunks of a run on the workers of a Dask cluster: processes of this machine, or of any number of others.

Dask decides which worker computes what, repeats what fails, and says what is finished. Workers write the
parts themselves, so that only numbers of rows go over the network.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specjax.errors import ConfigError, SpecjaxError
from specjax.pipeline.work import SHARED, Work, record_of
from specjax.prepare.plan import Plan
from specjax.prepare.pool import core_count
from specjax.progress import Say

if TYPE_CHECKING:
    from distributed import Client, Future

_TIMEOUT = "10s"  # for the scheduler to answer
_RETRIES = 2  # of a chunk that raises an error, such as one of a busy file system
_KILLERS = 3  # chunks that kill workers; if there are more, the workers are at fault
_AT_ONCE = 64  # chunks in one message to the scheduler, with up to 256 files each
_PER_THREAD = 4
_VISIBLE = 90.0  # seconds; NFS caches a folder for up to 60

_SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
_FORMS = "local:N for N processes of this machine, an address such as tcp://HOST:8786, or a scheduler file"


def check_cluster(dask: str) -> None:
    """Check what a user gives as cluster, before anything is read.

    Raises:
        ConfigError: it is neither local:N, nor an address, nor a scheduler file, or Dask is missing.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise ConfigError("--dask needs dask.distributed: pip install 'specjax[dask]'") from None
    if not (_local_count(dask) or dask.startswith(_SCHEMES) or Path(dask).is_file()):
        raise ConfigError(f"--dask takes {_FORMS}, not {dask}")


def compute_on_cluster(
    work: Work, plan: Plan, todo: Sequence[int], parts: Sequence[Path], *, dask: str, say: Say
) -> Generator[tuple[int, int]]:
    """Compute chunks on a cluster, whose workers write the parts.

    Closing the generator, as an error or an interrupt does, cancels the chunks that are not finished. A local
    cluster ends with it.

    Args:
        work: what is done; `work.again` makes it on the workers.
        plan: the plan with all chunks.
        todo: numbers of the chunks to compute.
        parts: absolute path of the part of each chunk, in the folder that `begin_or_resume` has made.
        dask: local:N, the address of a scheduler, or a scheduler file.
        say: receives lines of progress.

    Yields:
        (number, number of rows) of each chunk as it finishes, in any order.

    Raises:
        ConfigError: no scheduler answers.
        SpecjaxError: a worker has another model or version or does not see the files, chunks end workers
            again and again, or the scheduler was lost.
    """
    from specjax.pipeline.worker import ModelPlugin

    local = bool(_local_count(dask))
    plugin = ModelPlugin(work.again, record_of(work), parts[0].parent, local=local)
    with _connected(dask) as client:
        count = len(client.nthreads())
        say(f"{count} Dask worker{'s'[: count != 1]}" if count else f"waiting for a Dask worker at {dask}")
        try:
            client.register_plugin(plugin)
        except Exception as error:  # whatever the workers raise that have no specjax, or an old one
            raise SpecjaxError(
                f"the workers cannot load the model: {type(error).__name__}: {error}"
            ) from None
        try:
            yield from _as_completed(client, plugin.name, plan, todo, parts)
        finally:
            # Without a scheduler there is nothing to remove it from.
            with suppress(Exception):
                client.unregister_worker_plugin(plugin.name)
    _wait_until_seen([parts[number] for number in todo])


def _local_count(dask: str) -> int:
    """Return N of local:N; 0 for anything else."""
    kind, _, count = dask.partition(":")
    return int(count) if kind == "local" and count.isdecimal() else 0


@contextmanager
def _connected(dask: str) -> Iterator["Client"]:
    """Connect to a cluster for the duration of a `with` block; a local one is started and ended."""
    from distributed import Client

    if count := _local_count(dask):
        with _local_cluster(count) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
        return
    where = {"address": dask} if dask.startswith(_SCHEMES) else {"scheduler_file": dask}
    try:
        client = Client(**where, timeout=_TIMEOUT, set_as_default=False)
    except Exception as error:  # a scheduler file may hold anything
        raise ConfigError(f"no Dask scheduler answers at {dask}: {error}") from None
    with client:
        yield client


@contextmanager
def _local_cluster(count: int) -> Iterator[Any]:
    """Start processes that share the cores and the memory of this machine."""
    import dask
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    # A worker is sent one chunk at a time: one that waits behind a chunk that ends workers is suspected, too.
    # Workers that die are started again. Where that fails, too, no other would ever come.
    # Dask makes its workers return freed memory to the system at once, as those that live long should. Here
    # every chunk takes what the one before has freed, and this led to nine times as many page faults.
    name = "distributed.nanny.pre-spawn-environ"
    variables = dask.config.get(name).items()
    settings = {
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.no-workers-timeout": "60s",
        name: {key: value for key, value in variables if not key.startswith("MALLOC_")},
    }
    try:
        with dask.config.set(settings):
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",  # metrics are served in any case, here from any free port
                scheduler_kwargs={"dashboard": False},
                memory_limit=MEMORY_LIMIT // count,
                env={"NPROC": str(max(core_count() // count, 1))},  # threads of the compiled model
                silence_logs="CRITICAL",  # of what stops a run, the error says more
            )
    except RuntimeError as error:
        raise SpecjaxError(f"the {count} Dask workers could not be started: {error}") from None
    with cluster:
        yield cluster


def _as_completed(
    client: "Client", plugin: str, plan: Plan, todo: Sequence[int], parts: Sequence[Path]
) -> Iterator[tuple[int, int]]:
    """Yield (number, number of rows) of chunks as they finish.

    Only some chunks per worker are with the scheduler: with the names of its files a chunk takes up to 40 kB
    there, and a large survey has 100,000. There are always a hundred or more, so that a cluster that starts
    workers when there is work sees it.
    """
    from distributed import KilledWorker, as_completed
    from distributed.scheduler import NoWorkerError

    waiting = iter(todo)
    running: dict[Future[int], int] = {}
    killers: list[int] = []
    done = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    while True:
        for future, number in _submit(client, plugin, plan, waiting, parts, len(running)):
            running[future] = number
            done.add(future)
        if not running:
            break
        for future, result in done.next_batch():
            number = running.pop(future)
            if future.status == "finished":
                yield number, result
            elif future.status != "error":
                raise SpecjaxError(_LOST)
            elif isinstance(result[1], KilledWorker):
                killers.append(number)
            elif isinstance(result[1], NoWorkerError):
                raise SpecjaxError(_ALONE)
            else:
                raise result[1].with_traceback(result[2])
        if len(killers) > _KILLERS:
            break
    if killers:
        raise SpecjaxError(_killed(plan, killers))


_ALONE = "all Dask workers have died, and no other has come: run the same command again to resume"
_LOST = "the connection to the Dask scheduler was lost: run the same command again to resume"


def _submit(
    client: "Client",
    plugin: str,
    plan: Plan,
    waiting: Iterator[int],
    parts: Sequence[Path],
    running: int,
) -> Iterator[tuple["Future[int]", int]]:
    """Send the next chunks to the scheduler, in their order, until there are enough for all workers."""
    from specjax.pipeline.worker import Chunk, compute_chunk

    try:
        room = max(2 * _AT_ONCE, _PER_THREAD * sum(client.nthreads().values())) - running
        while numbers := list(islice(waiting, max(min(room, _AT_ONCE), 0))):
            room -= len(numbers)
            chunks = [Chunk(plugin, plan.chunks[number], parts[number]) for number in numbers]
            futures = client.map(compute_chunk, chunks, pure=False, retries=_RETRIES)
            yield from zip(futures, numbers, strict=True)
    except (OSError, CancelledError):
        raise SpecjaxError(_LOST) from None


def _wait_until_seen(parts: Sequence[Path]) -> None:
    """Wait for parts that other hosts have written: a network file system shows them after a minute."""
    folder, patience = parts[0].parent, time.monotonic() + _VISIBLE
    # Listing the folder makes the file system ask its server again.
    while missing := {path.name for path in parts} - {path.name for path in folder.iterdir()}:
        if time.monotonic() > patience:
            raise SpecjaxError(f"{len(missing)} finished parts are not in {folder} on this host; {SHARED}")
        time.sleep(0.1)


def _killed(plan: Plan, numbers: Sequence[int]) -> str:
    """Describe chunks that have ended several workers, by their files."""
    paths = list(dict.fromkeys(str(source.path) for number in numbers for source in plan.chunks[number]))
    more = f" and {len(paths) - 3} more files" if len(paths) > 3 else ""
    advice = "perhaps from lack of memory: run the same command again, without --dask or with larger workers"
    return f"several workers died of {', '.join(paths[:3])}{more}, {advice}"
