"""Timing of alternating calls and of processes, and the peak performance of the device."""

import dataclasses
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        section: letter of the section.
        what: what was done, with its sizes.
        count: number of units per call.
        unit: what is counted.
        times: seconds of each call by side: "specjax", "torch", "torch.compile".
        flops: FLOPs that a call needs at least, counted on paper.
        bytes: bytes that a call reads and writes at least, counted on paper.
        first: seconds of the first call of specjax, including compilation.
        note: remark for the reader.
    """

    section: str
    what: str
    count: int
    unit: str
    times: Mapping[str, list[float]]
    flops: float = math.nan
    bytes: float = math.nan
    first: float = math.nan
    note: str = ""

    def median(self, side: str = "specjax") -> float:
        """Return the median seconds of a call, NaN for a side that was not timed."""
        return statistics.median(self.times[side]) if self.times.get(side) else math.nan

    def floor(self, peaks: "DevicePeaks") -> float:
        """Return the seconds that the device needs at least, at its measured peak performance."""
        bounds = (self.flops / peaks.flops, self.bytes / peaks.bandwidth)
        return max((bound for bound in bounds if not math.isnan(bound)), default=math.nan)

    def ratio(self) -> float:
        """Return the faster of the PyTorch medians divided by the median of specjax."""
        others = [self.median(side) for side in self.times if side != "specjax" and self.times[side]]
        return min(others) / self.median() if others else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicePeaks:
    """Measured peaks of a device: FLOPs of a large matrix product and bytes of a large copy, per second."""

    flops: float
    bandwidth: float


def time_alternating(
    calls: Mapping[str, Call], *, repeats: int, limit: float
) -> tuple[dict[str, list[float]], float]:
    """Time calls in alternation, after a first round that is not counted.

    Args:
        calls: calls by side.
        repeats: number of rounds.
        limit: seconds after which no further round starts, except that there are at least two.

    Returns:
        Seconds of all calls by side, and of the first call of "specjax".
    """
    first = {name: seconds(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn >= 2 and time.perf_counter() - began > limit:
            break
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times, first.get("specjax", math.nan)


def seconds(call: Call) -> float:
    """Time one call, until its JAX arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def run_process(command: Sequence[object], **environment: str) -> tuple[float, str]:
    """Run a command with additional environment variables; return its seconds and its output.

    Raises:
        RuntimeError: the command failed.
    """
    words = [str(word) for word in command]
    start = time.perf_counter()
    done = subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start, done.stdout


def measure_device(dtype: str, repeats: int = 7) -> DevicePeaks:
    """Measure a square matrix product in `dtype` and a copy of float32, each as the best of several calls."""
    accelerated = jax.default_backend() != "cpu"
    size, numbers = (8192, 2**29) if accelerated else (2048, 2**26)
    matrix = jnp.ones((size, size), dtype)
    vector = jnp.ones(numbers, jnp.float32)
    multiply, scale = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
    best = {}
    for name, call in {"multiply": lambda: multiply(matrix), "copy": lambda: scale(vector)}.items():
        seconds(call)
        best[name] = min(seconds(call) for _ in range(repeats))
    return DevicePeaks(flops=2 * size**3 / best["multiply"], bandwidth=8 * numbers / best["copy"])
