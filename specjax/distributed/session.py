"""The time in which the processes of a run need each other, from `session` to `finish`."""

import atexit
import contextlib
import importlib.metadata
import logging
import os
import sys
import time
from collections.abc import Iterator

import jax

from specjax._version import __version__
from specjax.distributed.cluster import Cluster, find_cluster
from specjax.distributed.exchange import DifferentProcessesError
from specjax.distributed.streams import end_process, own_streams
from specjax.distributed.watch import Watch, meet
from specjax.errors import ConfigError, SpecjaxError
from specjax.progress import Say, silent

HEARTBEAT = 100  # seconds after which JAX takes a process for lost; `watch` notices sooner
VERDICT = 5.0  # seconds in which a failure elsewhere is known to `watch`

_current: Watch | None = None


@contextlib.contextmanager
def session(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    wait: int = 300,
    say: Say = silent,
) -> Iterator[None]:
    """Connect the processes of a run, for as long as the `with` block lasts or until `finish`.

    It must be entered before anything is computed with JAX. If the block raises an error in one process, or
    a process is killed, all others end with one line on stderr and the status 1.

    Args:
        coordinator: see `find_cluster`.
        processes: likewise.
        process: likewise.
        wait: seconds to wait for all processes.
        say: receives a line about the processes in process 0.

    Raises:
        ConfigError: no cluster is found, or the processes have different versions.
        SpecjaxError: a process is missing after the time to wait.
    """
    global _current
    if _current is not None:
        raise ConfigError("this process is part of a distributed run already")
    cluster = find_cluster(coordinator, processes, process, wait=wait)
    with own_streams(end_process):
        _current = meet(cluster, _versions(), wait=wait, end=end_process)
        try:
            _initialize(cluster, wait, say)
            yield
            finish()
        except BaseException as error:
            _fail(error)
            raise


def finish() -> None:
    """Disconnect: the other processes may end, and process 0 goes on alone. All processes must call it."""
    global _current
    if _current is None:
        return
    jax.distributed.shutdown()  # waits for all
    _current.close()
    _current = None


def _initialize(cluster: Cluster, wait: int, say: Say) -> None:
    # JAX would take SIGTERM for a notice and go on; schedulers mean the end by it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            local_device_ids=cluster.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except RuntimeError as error:
        raise ConfigError(f"jax.distributed cannot be initialized: {error}") from None
    if cluster.process:
        logging.getLogger("specjax").setLevel(logging.ERROR)
    else:
        count = f"{cluster.processes} processes with {jax.device_count()} devices"
        say(f"{count}; process 0 is at {cluster.coordinator}")


def _fail(error: BaseException) -> None:
    """Tell the others of an error in this process, unless they have it too; let this one end."""
    global _current
    if _current is None:  # the others have gone already, and need not know
        return
    if not isinstance(error, SpecjaxError | OSError | KeyboardInterrupt):
        time.sleep(VERDICT)  # the cause may be the end of another process, which then ends this one
    if isinstance(error, DifferentProcessesError):
        _current.close()
    else:
        _current.fail(str(error) or type(error).__name__)
    _current = None
    atexit.register(_leave)


def _leave() -> None:
    """Exit without waiting for the other processes, as JAX would."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def _versions() -> dict[str, str]:
    return {
        "the version of specjax": __version__,
        "the version of jax": importlib.metadata.version("jax"),
        "the version of numpy": importlib.metadata.version("numpy"),
    }
