"""Run commands in new processes, with their time, CPU time and peak memory."""

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SAMPLING_S = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """Seconds, CPU seconds and output of a command, and the peak memory in bytes of all of its processes.

    Memory is what the processes have for themselves: pages of files that are mapped into memory, which the
    system takes back when it needs them, are left out. It is 0 where the system does not report it.
    """

    seconds: float
    cpu: float
    memory: float
    out: str


def specjax(*arguments: object, cache: Path) -> Finished:
    """Run a command of specjax with a cache folder."""
    return run([sys.executable, "-m", "specjax", *arguments], SPECJAX_CACHE=str(cache))


def run(command: Sequence[object], **environment: str) -> Finished:
    """Run a command with additional environment variables.

    Raises:
        RuntimeError: the command failed.
    """
    words, before = [str(word) for word in command], _children_cpu()
    start, peaks = time.perf_counter(), [0.0]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, env={**os.environ, **environment}, stdout=out, stderr=errors)
        while True:
            try:
                process.wait(SAMPLING_S)
                break
            except subprocess.TimeoutExpired:
                peaks.append(own_memory(process.pid))
        seconds = time.perf_counter() - start
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{errors.read()[-2000:]}")
        return Finished(seconds=seconds, cpu=_children_cpu() - before, memory=max(peaks), out=out.read())


def own_memory(pid: int) -> float:
    """Return the memory in bytes that a process and its descendants have for themselves, 0 if unknown."""
    return sum(map(_anonymous, _tree(pid)))


def _anonymous(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # the process has ended, or this is not Linux
        return 0.0
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Pss_")}
    return 1024.0 * sum(int(sizes[name]) for name in ("Pss_Anon", "Pss_Shmem")) if sizes else 0.0


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting += [int(word) for word in children.read_text().split()]
            except OSError:  # the thread has ended
                continue
    return found


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
