"""Worker processes that prepare chunks in parallel and end with their parent process."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

from specjax.errors import SpecjaxError
from specjax.prepare.chunks import prepare_chunk
from specjax.prepare.plan import Plan

Job = Future[tuple[int, int]]  # numbers of spectra and of refusals

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_chunks(
    plan: Plan, parts: Sequence[Path], todo: Sequence[int], workers: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Prepare chunks and write their parts, in this process if one worker suffices.

    Args:
        plan: the plan with all chunks.
        parts: path of the part of each chunk.
        todo: numbers of the chunks to prepare.
        workers: maximum number of processes.

    Yields:
        (number, (spectra, refusals)) of each chunk as it finishes, in any order.

    Raises:
        SpecjaxError: if a worker process died.
    """
    workers = min(workers, len(todo))
    if workers <= 1:
        for number in todo:
            yield number, prepare_chunk(plan.chunks[number], plan.options, parts[number])
        return
    # Spawned, because forking a process with threads, which JAX starts, may deadlock.
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(workers, context, initializer=_be_a_worker) as pool:
        try:
            for number, job in _as_completed(pool, workers, plan, parts, todo):
                yield number, job.result()
        except BrokenProcessPool:
            advice = "run again with fewer workers to resume"
            raise SpecjaxError(f"a worker process died, perhaps from lack of memory: {advice}") from None


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_completed(
    pool: ProcessPoolExecutor, workers: int, plan: Plan, parts: Sequence[Path], todo: Sequence[int]
) -> Iterator[tuple[int, Job]]:
    """Yield chunks as they finish; none is queued, so that an interrupt waits only for running chunks."""
    waiting = iter(todo)
    jobs: dict[Job, int] = {}
    while True:
        for number in islice(waiting, workers - len(jobs)):
            jobs[pool.submit(prepare_chunk, plan.chunks[number], plan.options, parts[number])] = number
        if not jobs:
            return
        for job in wait(jobs, return_when=FIRST_COMPLETED).done:
            yield jobs.pop(job), job


def _be_a_worker() -> None:
    """Ignore interrupts, so that a running chunk is finished, and end when the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # an idle worker would wait forever


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit linear algebra to one thread per worker, because the workers already occupy all cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update({name: value or "1" for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
