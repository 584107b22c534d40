"""Clocks and yardsticks: calls in turns, their medians, and what the device can do at most."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        section: the letter of its part.
        what: what was done, with its sizes.
        count, unit: how many of what a call did.
        flops, bytes: what a call must compute, and read and write, at least; worked out on paper.
        times: seconds of each call, by who did it ("specjax", "torch", "torch.compile"), in turns.
        first: seconds of the first call of specjax, compiling included.
        note: what a reader must know.
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

    def median(self, who: str = "specjax") -> float:
        """Median seconds of a call, NaN for who did not take part."""
        return statistics.median(self.times[who]) if self.times.get(who) else math.nan

    def floor(self, yardstick: "Yardstick") -> float:
        """Seconds that the device needs at least, by its measured peaks."""
        bounds = (self.flops / yardstick.flops, self.bytes / yardstick.bandwidth)
        return max((bound for bound in bounds if not math.isnan(bound)), default=math.nan)

    def ratio(self) -> float:
        """How many times specjax fits into the faster of the PyTorch medians."""
        others = [self.median(who) for who in self.times if who != "specjax" and self.times[who]]
        return min(others) / self.median() if others else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Measured peaks of a device: flops of a large matrix product and bytes of a large copy, per second."""

    flops: float
    bandwidth: float


def in_turns(
    calls: Mapping[str, Call], *, repeats: int, limit: float
) -> tuple[dict[str, list[float]], float]:
    """Time every call `repeats` times in turns, after one each that does not count.

    Stops early, but not before each has run twice, once `limit` seconds have passed. Returns the seconds by
    name, and those of the first call of "specjax".
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
    """Time one call, whose result is waited for if it is a JAX one."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure_device(dtype: str, repeats: int = 7) -> Yardstick:
    """Measure a square matrix product in `dtype` and a copy of float32; the best of some calls each."""
    accelerated = jax.default_backend() != "cpu"
    size, numbers = (8192, 2**29) if accelerated else (2048, 2**26)
    matrix = jnp.ones((size, size), dtype)
    vector = jnp.ones(numbers, jnp.float32)
    multiply, scale = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
    best = {}
    for name, call in {"multiply": lambda: multiply(matrix), "copy": lambda: scale(vector)}.items():
        seconds(call)
        best[name] = min(seconds(call) for _ in range(repeats))
    return Yardstick(flops=2 * size**3 / best["multiply"], bandwidth=8 * numbers / best["copy"])
