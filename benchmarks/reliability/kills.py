"""Processes that are killed at random times, and what the next ones find."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from benchmarks.reliability.commands import Command, environment_of, remove, start
from specjax.errors import SpecjaxError
from specjax.typing import AnyArray

CACHE = """
import sys, numpy as np
from pathlib import Path
from specjax.adapt.feature_cache import _read, _write
from specjax.foundation import BackboneFeatures
path, right = Path(sys.argv[1]) / "features.npz", np.arange(300_000, dtype=np.float32)
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    found = _read(path)
    if found is not None and not all(np.array_equal(array, right) for array in found):
        sys.exit("wrong features")
    _write(path, BackboneFeatures(right, right), 10 * right.nbytes)
"""


def kill_command(command: Command, place: Path, count: int, rng: Generator) -> dict[str, Any]:
    """Run a command undisturbed, then kill it `count` times, continuing each time, and let it end.

    Returns:
        The number of kills, the seconds of the undisturbed run, how often the output was absent, whole and
        damaged after a kill, the largest difference of the final numbers from the undisturbed ones, and the
        temporary files that are left at the end.
    """
    environment = environment_of(place)
    reference, seconds = _undisturbed(command, place / "reference" / command.out, environment)
    out = place / "killed" / command.out
    out.parent.mkdir(parents=True, exist_ok=True)
    states = {"absent": 0, "whole": 0, "damaged": 0}
    for _ in range(count):
        words = command.words + (command.again if _has_states(out) else ())
        with start(words, out, environment) as process:
            time.sleep(rng.uniform(0.05, 1.0) * seconds)
            os.killpg(process.pid, signal.SIGKILL)
        state = _state(command, out, reference)
        states[state] += 1
        if state == "whole":  # it ended before it was killed: begin anew
            remove(out)
    words = command.words + (command.again if _has_states(out) else ())
    with start(words, out, environment) as process:
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{words[0]} does not continue: {errors.strip().splitlines()[-1]}")
    difference = float(np.abs(command.read(out) - reference).max())
    left = [path.name for path in out.parent.iterdir() if path.name.startswith(".")]
    return {"kills": count, "seconds": seconds, **states, "difference": difference, "left": left}


def kill_cache(place: Path, count: int, rng: Generator) -> dict[str, Any]:
    """Let two processes read and write the same features, and kill both `count` times."""
    folder = place / "features"
    folder.mkdir(parents=True)
    wrong = 0
    for _ in range(count):
        pair = [_cache_user(folder, place, 1_000_000) for _ in range(2)]
        for process in pair:
            assert process.stdout is not None
            process.stdout.readline()
        for process in pair:
            time.sleep(rng.uniform(0, 0.2))
            if process.poll() is not None:
                wrong += 1
            process.kill()
            process.communicate()
    with _cache_user(folder, place, 1) as last:
        wrong += last.wait() != 0
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {"kills": 2 * count, "wrong": wrong, "left": left}


def _undisturbed(command: Command, out: Path, environment: dict[str, str]) -> tuple[AnyArray, float]:
    out.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with start(command.words, out, environment) as process:
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command.words[0]}: {errors.strip().splitlines()[-1]}")
    return command.read(out), time.monotonic() - begin


def _has_states(out: Path) -> bool:
    """Return whether there are training states of an interrupted pretraining."""
    return out.with_name(f"{out.name}.training").exists()


def _state(command: Command, out: Path, reference: AnyArray) -> str:
    """Return what a kill left of the output."""
    if not out.exists():
        return "absent"
    try:
        found = command.read(out)
    except SpecjaxError:
        return "damaged"
    return "whole" if found.shape == reference.shape else "damaged"


def _cache_user(folder: Path, place: Path, rounds: int) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", CACHE, str(folder), str(rounds)]
    return subprocess.Popen(words, env=environment_of(place), stdout=subprocess.PIPE, text=True)
