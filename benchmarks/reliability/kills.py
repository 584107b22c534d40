"""Processes that are killed, and what the next ones find.

A command is killed at random, or before a change of its files. Its times are those of the processor, so that
they mean the same on a busy machine.
"""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from numpy.random import Generator

from benchmarks.reliability import forks
from benchmarks.reliability.commands import Command
from benchmarks.reliability.limits import output_state
from specjax.progress import say

TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 600.0  # seconds that a command may take


class Trial:
    """A command in a folder of its own, beside the result of an undisturbed run.

    Attributes:
        seconds: of processor time that the undisturbed run took.
        changes: of files in its folder that it made.
    """

    def __init__(self, command: Command, place: Path, context: Any) -> None:
        """Run the command undisturbed, twice: the first run fills the caches."""
        self.command, self.context, self.place = command, context, place
        self.out = place / "reference" / command.out
        self.errors = place / "errors.txt"
        self.marks = place / "changes.txt"
        for _ in range(2):
            self.clear()
            process = self.start()
            self.seconds = _processor_time(process, PATIENCE)
            self.end(process)
        self.changes = self.marks.stat().st_size
        self.reference, self.names = command.read(self.out), self._names()
        self.out = place / "killed" / command.out
        self.clear()

    def start(self, *, again: bool = False, kill_at: int | None = None) -> BaseProcess:
        """Start the command; `again` continues an interrupted run."""
        watched = forks.Conditions(
            before=small_chunks, watched=self.out.parent, changes=self.marks, kill_at=kill_at
        )
        self.marks.unlink(missing_ok=True)
        return forks.start(self.context, self.command.filled(self.out, again), self.errors, watched)

    def end(self, process: BaseProcess) -> None:
        """Wait for the command.

        Raises:
            RuntimeError: it fails.
        """
        process.join()
        if process.exitcode:
            lines = self.errors.read_text().strip().splitlines()
            raise RuntimeError(f"{self.command.words[0]} fails: {lines[-1] if lines else process.exitcode}")

    def clear(self) -> None:
        """Remove all that it has written."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir(parents=True)

    def state(self) -> str:
        """Return whether the output is absent, whole or damaged."""
        return output_state(self.command, self.out, self.reference)

    def fault(self, process: BaseProcess) -> str:
        """Wait for a continued run and return what is wrong with its result; "" if nothing is."""
        try:
            self.end(process)
        except RuntimeError as error:
            return str(error)
        names, state = self._names(), self.state()
        if state != "whole":
            return f"the output is {state}"
        return "" if names == self.names else f"other files: {sorted(names ^ self.names)}"

    def _names(self) -> set[str]:
        """Return the names of all files and folders beside and in the output."""
        return {str(path.relative_to(self.out.parent)) for path in self.out.parent.rglob("*")}


def small_chunks() -> None:
    """Let chunks of files be small, so that a few stars make several."""
    from specjax.prepare import plan

    plan._FILES_AT_ONCE = 12


def kill_at_random(trial: Trial, count: int, rng: Generator) -> dict[str, Any]:
    """Kill a command `count` times within its processor time; half of the runs after a kill are let to end.

    Returns:
        The number of kills, of those before the first change of a file, of the states of the output, and of
        the continued runs that ended; and the faults of these.
    """
    found = _counts()
    while found["kills"] < count:
        process = trial.start(again=trial.out.parent.exists() and _begun(trial))
        _processor_time(process, rng.uniform(0, 1) * trial.seconds)
        if _killed(process):
            _note(found, trial)
            if rng.random() < 0.5:
                continue
            process = trial.start(again=True)
        _finish(found, trial, process)
    return found


def kill_at_changes(trial: Trial, count: int, rng: Generator) -> dict[str, Any]:
    """Kill a command before up to `count` of its changes of files, each time in a run of its own.

    Returns:
        As `kill_at_random`, with the number of changes.
    """
    trial.clear()  # a campaign at random ends with a kill
    found = {"changes": trial.changes, **_counts()}
    numbers = range(trial.changes)
    chosen = numbers if count >= len(numbers) else sorted(rng.choice(len(numbers), count, replace=False))
    for number in chosen:
        process = trial.start(kill_at=int(number))
        process.join()
        if process.exitcode == -signal.SIGKILL:
            _note(found, trial)
            process = trial.start(again=True)
        _finish(found, trial, process, f"before change {number}")
    return found


def _begun(trial: Trial) -> bool:
    """Return whether a run has left anything, so that the next one continues it."""
    return any(trial.out.parent.iterdir())


def _counts() -> dict[str, Any]:
    states = {"absent": 0, "whole": 0, "damaged": 0}
    return {"kills": 0, "before any change": 0, **states, "ended": 0, "faults": []}


def _note(found: dict[str, Any], trial: Trial) -> None:
    """Count a kill and what it has left."""
    found["kills"] += 1
    found["before any change"] += not trial.marks.exists() or trial.marks.stat().st_size == 0
    found[trial.state()] += 1
    say(f"{trial.command.words[0]}: {json.dumps(found)}")


def _finish(found: dict[str, Any], trial: Trial, process: BaseProcess, where: str = "") -> None:
    """Let a run end, count it and its fault, and remove what it has written."""
    fault = trial.fault(process)
    found["ended"] += 1
    if fault:
        found["faults"].append(f"{where}: {fault}" if where else fault)
        say(f"{trial.command.words[0]}: fault: {found['faults'][-1]}")
    trial.clear()


def _killed(process: BaseProcess) -> bool:
    """Kill a process and return whether it still ran."""
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def _processor_time(process: BaseProcess, limit: float) -> float:
    """Wait until a process has used so many seconds of the processor, or ended; return what it has used."""
    used = 0.0
    while process.is_alive() and used < limit:
        used = max(used, _used(process.pid or 0))
        time.sleep(0.01)
    return used


def _used(process: int) -> float:
    """Return the processor time of a running process, 0 if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return TICK * (int(fields[11]) + int(fields[12]))


def kill_cache(context: Any, folder: Path, count: int, rng: Generator) -> dict[str, Any]:
    """Let two processes read and write the same features, and kill both until there were `count` kills."""
    folder.mkdir(parents=True)
    kills = wrong = 0
    while kills < count:
        pair = [_cache_user(context, folder, 1_000_000) for _ in range(2)]
        for process in pair:
            _processor_time(process, rng.uniform(0.02, 0.3))
            wrong += not _killed(process)
            kills += 1
    last = _cache_user(context, folder, 1)
    last.join()
    wrong += last.exitcode != 0
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {"kills": kills, "wrong": wrong, "left": left}


def _cache_user(context: Any, folder: Path, rounds: int) -> BaseProcess:
    process: BaseProcess = context.Process(target=forks.use_features, args=(folder, rounds))
    process.start()
    return process
