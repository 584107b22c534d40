"""Timing of alternating calls, and the peak performance of the device."""

import dataclasses
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from specjax.train.speed import matrix_peak

Call = Callable[[], Any]

OURS = "specjax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One piece of work, and how long each side takes for it.

    Attributes:
        section: letter of the section.
        what: what was done, with its sizes.
        count: number of units per call.
        unit: what is counted.
        times: seconds of each call by side, "specjax" and those of `comparison`. Call k of every side belongs
            to one round.
        cpu: the same in seconds of CPU time, of this process and of its children that have ended.
        first: seconds of the first call by side, including compilation.
        memory: peak memory in bytes by side, where it was measured.
        flops: FLOPs that a call needs at least, counted on paper.
        bytes: bytes that a call reads and writes at least, counted on paper.
        of_core: rate over that of the compiled core alone, of each round.
        panel: panel of the plot that the row belongs to, "" for none.
        curve: name of its curve there.
        note: remark for the reader.
    """

    section: str
    what: str
    count: int
    unit: str
    times: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    first: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flops: float = math.nan
    bytes: float = math.nan
    of_core: list[float] = dataclasses.field(default_factory=list)
    panel: str = ""
    curve: str = ""
    note: str = ""

    def median(self, side: str = OURS) -> float:
        """Return the median seconds of a call, NaN for a side that was not timed."""
        return statistics.median(self.times[side]) if self.times.get(side) else math.nan

    def rate(self, side: str = OURS) -> float:
        """Return units per second."""
        return self.count / self.median(side)

    def floor(self, peaks: "DevicePeaks") -> float:
        """Return the seconds that the device needs at least, at its measured peak performance."""
        bounds = (self.flops / peaks.flops, self.bytes / peaks.bandwidth)
        return max((bound for bound in bounds if not math.isnan(bound)), default=math.nan)

    def ratios(self, side: str) -> list[float]:
        """Return the seconds of a side over those of specjax, of each round; none if one was not timed."""
        if side == OURS:
            return []
        ours, theirs = self.times.get(OURS, []), self.times.get(side, [])
        return [other / own for own, other in zip(ours, theirs, strict=False)]

    def ratio(self, side: str | None = None) -> float:
        """Return the median of `ratios`, by default of the fastest other side; NaN without any."""
        sides = [side] if side else [name for name in self.times if name != OURS]
        ratios = [statistics.median(each) for name in sides if (each := self.ratios(name))]
        return min(ratios, default=math.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicePeaks:
    """Measured peaks of a device: FLOPs of a large matrix product and bytes of a large copy, per second."""

    flops: float
    bandwidth: float


@dataclasses.dataclass(kw_only=True)
class Timing:
    """Seconds and CPU seconds of all calls and seconds of first calls by side, and why a side failed."""

    times: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    cpu: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    first: dict[str, float] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)


def time_alternating(calls: Mapping[str, Call], *, repeats: int, limit: float) -> Timing:
    """Time calls in alternation, after a first round that is not counted.

    A side other than specjax that fails in the first round is left out.

    Args:
        calls: calls by side.
        repeats: number of rounds.
        limit: seconds after which no further round starts, except that there are at least two.
    """
    timing, working = Timing(), dict(calls)
    for name, call in calls.items():
        try:
            timing.first[name] = seconds(call)
        except Exception as error:  # a compiler may raise anything; the table continues without it
            if name == OURS:
                raise
            timing.failures.append(f"{name} does not work here: {_first_line(error)}")
            del working[name]
    timing.times, timing.cpu = {name: [] for name in working}, {name: [] for name in working}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn >= 2 and time.perf_counter() - began > limit:
            break
        for name, call in working.items():
            before = cpu_seconds()
            timing.times[name].append(seconds(call))
            timing.cpu[name].append(cpu_seconds() - before)
    return timing


def _first_line(error: Exception, most: int = 80) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:most].replace("|", "/")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def seconds(call: Call) -> float:
    """Time one call, until its JAX arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure_device(dtype: str, repeats: int = 7) -> DevicePeaks:
    """Measure a square matrix product in `dtype` and a copy of float32, each as the best of several calls."""
    numbers = 2**26 if jax.default_backend() == "cpu" else 2**29
    vector, scale = jnp.ones(numbers, jnp.float32), jax.jit(lambda a: a + 1)
    seconds(lambda: scale(vector))
    best = min(seconds(lambda: scale(vector)) for _ in range(repeats))
    return DevicePeaks(flops=matrix_peak(dtype, repeats), bandwidth=8 * numbers / best)
