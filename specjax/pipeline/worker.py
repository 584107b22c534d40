"""What runs on a Dask worker: the model, loaded once per process, and chunks computed with it."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from specjax.arenas import share_arenas
from specjax.cache import use_compilation_cache
from specjax.errors import SpecjaxError
from specjax.pipeline.parts import read_columns
from specjax.pipeline.work import SHARED, Work, read_chunk, record_of, write_chunk
from specjax.prepare.plan import Source
from specjax.prepare.resume import PLAN


@dataclass(frozen=True)
class Chunk:
    """A chunk to compute; Dask does not look into it, as it would into a list of files.

    Attributes:
        plugin: name of the `ModelPlugin` of the run.
        sources: what the chunk is read from.
        part: the file to write.
    """

    plugin: str
    sources: list[Source]
    part: Path


def compute_chunk(chunk: Chunk) -> int:
    """Compute a chunk on the worker that this runs on, and return its number of rows.

    Raises:
        SpecjaxError: the worker does not have the model of the run, or does not see its files.
    """
    plugin = get_worker().plugins.get(chunk.plugin)
    if not isinstance(plugin, ModelPlugin):
        raise SpecjaxError(f"the worker {get_worker().address} has not loaded the model")
    return plugin.compute(chunk)


class ModelPlugin(WorkerPlugin):
    """A plugin that loads model and adapter when it or a worker starts.

    What hinders a worker, such as another version of specjax, is kept as the reason for which it refuses all
    chunks, so that the client hears of it whenever the worker joins.
    """

    def __init__(
        self, again: Callable[[], Work], record: Mapping[str, Any], folder: Path, *, local: bool
    ) -> None:
        """Describe the work.

        Args:
            again: makes the work from absolute paths; it is sent to the workers.
            record: what the work depends on, see `work.record_of`, without stamps.
            folder: folder of the parts, which the client has made.
            local: the workers belong to the client, whose interrupts reach them, too.
        """
        self.name = f"specjax {folder}"  # a later client with the same output replaces the plugin
        self.again, self.record, self.folder, self.local = again, record, folder, local

    async def setup(self, worker: Worker) -> None:
        """Load the model in a thread, so that the worker still answers the scheduler."""
        self.address, self.lock, self.problem = worker.address, Lock(), ""
        # XLA starts as many threads as it finds cores, but a machine has several workers.
        os.environ.setdefault("NPROC", str(worker.state.nthreads))
        if self.local and current_thread() is main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client ends the worker
        try:
            self.work = await asyncio.to_thread(self._load)
        except Exception as error:
            reason = str(error) if isinstance(error, SpecjaxError) else f"{type(error).__name__}: {error}"
            self.problem = f"the worker {self.address} cannot take part: {reason}"

    def _load(self) -> Work:
        if not (self.folder / PLAN).exists():
            raise SpecjaxError(f"it does not see {self.folder}; {SHARED}")
        share_arenas()
        use_compilation_cache()
        work = self.again()
        wanted, own = ({"specjax": r["version"], **r["options"]} for r in (self.record, record_of(work)))
        for name, value in wanted.items():
            if own.get(name) != value:
                raise SpecjaxError(f"its {name} is {own.get(name)}, not {value}")
        return work

    def compute(self, chunk: Chunk) -> int:
        """Compute a chunk, one at a time in a worker, and return its number of rows."""
        with self.lock:  # XLA uses all threads of the worker
            if self.problem:
                raise SpecjaxError(self.problem)
            if chunk.part.exists():  # the worker that wrote it ended before the scheduler knew
                return len(read_columns(chunk.part, ["id"]).get("id", ()))
            for source in chunk.sources:
                self._check_seen(source)
            return write_chunk(self.work, read_chunk(chunk.sources, self.work.options), chunk.part)

    def _check_seen(self, source: Source) -> None:
        """Check that a file is the one that the client has seen: an absent one would count as unreadable."""
        path = source.path
        whole = source.rows is None and path.is_file()
        if not path.exists() or (whole and path.stat().st_size != source.size):
            raise SpecjaxError(f"the worker {self.address} does not see {path} as the client does; {SHARED}")
