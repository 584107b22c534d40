"""Worker processes that run jobs in parallel and end with their parent process."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from specjax.arenas import keep_memory
from specjax.errors import SpecjaxError
from specjax.interrupt import ignored_interrupt
from specjax.prepare.chunks import prepare_chunk
from specjax.prepare.plan import Plan

Result = TypeVar("Result")

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

    Returns:
        (number, (spectra, refusals)) of each chunk as it finishes, in any order.

    Raises:
        SpecjaxError: if a worker process died.
    """
    jobs = {number: (plan.chunks[number], plan.options, parts[number]) for number in todo}
    return run_jobs(prepare_chunk, jobs, workers)


def run_jobs(
    function: Callable[..., Result],
    jobs: Mapping[int, tuple[Any, ...]],
    workers: int,
    *,
    ahead: int = 0,
    finish: bool = True,
) -> Iterator[tuple[int, Result]]:
    """Apply a function to the arguments of each job, in this process if one worker suffices for all.

    Args:
        function: a function of a module that worker processes import.
        jobs: arguments by number.
        workers: maximum number of processes.
        ahead: jobs that are submitted beyond one per worker, so that no worker waits for the consumer. At
            most `workers + ahead` results are in memory.
        finish: if the consumer stops early, wait for running jobs, which write their own results; otherwise
            end the processes at once.

    Yields:
        (number, result) of each job as it finishes, in any order.

    Raises:
        SpecjaxError: if a worker process died.
    """
    if min(workers, len(jobs)) <= 1:
        for number, arguments in jobs.items():
            yield number, function(*arguments)
        return
    # Spawned, because forking a process with threads, which JAX starts, may deadlock.
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(jobs))
    ended, end = context.Pipe(duplex=False)
    with (
        _one_thread_each(),
        ended,
        end,
        ProcessPoolExecutor(workers, context, initializer=_be_a_worker, initargs=(ended,)) as pool,
    ):
        try:
            for number, job in _as_completed(pool, workers + ahead, function, jobs):
                yield number, job.result()
        except BrokenProcessPool:
            advice = "run again with fewer workers to resume"
            raise SpecjaxError(f"a worker process died, perhaps from lack of memory: {advice}") from None
        except BaseException:
            if not finish:
                end.close()
            pool.shutdown(cancel_futures=True)
            raise


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_completed(
    pool: ProcessPoolExecutor,
    limit: int,
    function: Callable[..., Result],
    jobs: Mapping[int, tuple[Any, ...]],
) -> Iterator[tuple[int, Future[Result]]]:
    """Yield jobs as they finish; at most `limit` are submitted and not yet yielded."""
    waiting = iter(jobs)
    submitted: dict[Future[Result], int] = {}
    while True:
        for number in islice(waiting, limit - len(submitted)):
            with ignored_interrupt():  # else a process that starts prints tracebacks of its imports
                submitted[pool.submit(function, *jobs[number])] = number
        if not submitted:
            return
        done = min(wait(submitted, return_when=FIRST_COMPLETED).done, key=submitted.__getitem__)
        yield submitted.pop(done), done


def _be_a_worker(ended: Connection) -> None:
    """Ignore interrupts, so that a running job is finished, and end when the parent process ends.

    The worker also ends at once when the parent closes its end of the pipe of `ended`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_after, args=([parent.sentinel, ended],), daemon=True).start()


def _end_after(handles: list[Any]) -> None:
    wait_for_any(handles)
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
