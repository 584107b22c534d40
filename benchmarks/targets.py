"""What the timings should reach, and how it follows from the results; what was not measured is NaN."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Literal

from benchmarks import names
from benchmarks.comparison import BATCHED, COMPILED, FUSED, LOOP
from benchmarks.results import Sections
from benchmarks.timing import OURS, Row

SURVEY, LARGE_SURVEY = 10_000, 100_000
STARS, STEPS, SEEDS = 60, 80, 16
HOST_SPECTRA, FEW_SPECTRA = 8192, 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One target.

    Attributes:
        what: what is measured.
        limit: the value to reach.
        kind: whether larger or smaller values are better.
        shown: format of values.
        measure: the value of a run, NaN if it was not measured.
    """

    what: str
    limit: float
    kind: Literal["at least", "at most"]
    shown: str
    measure: Callable[[Sections], float]

    def is_met(self, value: float) -> bool:
        """Return whether a value reaches the limit."""
        return value >= self.limit if self.kind == "at least" else value <= self.limit

    def format(self, value: float) -> str:
        """Format a value."""
        return self.shown.format(value)

    def wanted(self) -> str:
        """Return the limit as text."""
        return f"{self.kind} {self.format(self.limit)}"


def find(sections: Sections, letter: str, what: str) -> Row | None:
    """Return the row of a section with a description, None without one."""
    rows = sections[letter].rows if letter in sections else []
    return next((row for row in rows if row.what == what), None)


def _of_core(kind: str) -> Callable[[Sections], float]:
    def measure(sections: Sections) -> float:
        row = find(sections, "h", names.survey(kind, LARGE_SURVEY))
        return statistics.median(row.of_core) if row is not None and row.of_core else math.nan

    return measure


def _memory_growth(kind: str) -> Callable[[Sections], float]:
    """Return by which fraction the peak memory of `specjax predict` grows for ten times as many spectra."""

    def measure(sections: Sections) -> float:
        rows = [find(sections, "i", names.survey(kind, count)) for count in (SURVEY, LARGE_SURVEY)]
        peaks = [row.memory[OURS] for row in rows if row is not None and OURS in row.memory]
        return peaks[1] / peaks[0] - 1 if len(peaks) == 2 else math.nan

    return measure


def _ratio(letter: str, what: str, *sides: str) -> Callable[[Sections], float]:
    """Return the ratio to the fastest of some sides."""

    def measure(sections: Sections) -> float:
        row = find(sections, letter, what)
        ratios = [row.ratio(side) for side in sides if row.times.get(side)] if row is not None else []
        return min(ratios, default=math.nan)

    return measure


def _seconds(letter: str, what: str) -> Callable[[Sections], float]:
    def measure(sections: Sections) -> float:
        row = find(sections, letter, what)
        return math.nan if row is None else row.median()

    return measure


def _per_cpu_second(letter: str, what: str) -> Callable[[Sections], float]:
    def measure(sections: Sections) -> float:
        row = find(sections, letter, what)
        return row.count / statistics.median(row.cpu[OURS]) if row is not None and row.cpu else math.nan

    return measure


def _of_peak(letter: str, what: str) -> Callable[[Sections], float]:
    def measure(sections: Sections) -> float:
        row = find(sections, letter, what)
        return math.nan if row is None else row.floor(sections[letter].peaks) / row.median()

    return measure


_LOOPS = (LOOP, FUSED, LOOP + COMPILED, FUSED + COMPILED)
_RUN = names.head_run(STARS, STEPS, SEEDS)

TARGETS = (
    Target(
        what=f"`predict_survey`, {LARGE_SURVEY:,} raw spectra, 16 seeds: rate over that of the compiled core",
        limit=0.8, kind="at least", shown="{:.2f}", measure=_of_core(names.RAW),
    ),
    Target(
        what=f"the same from a prepared file of {LARGE_SURVEY:,} spectra",
        limit=0.95, kind="at least", shown="{:.2f}", measure=_of_core(names.PREPARED),
    ),
    Target(
        what="peak memory of `specjax predict`, raw files: growth from"
        f" {SURVEY:,} to {LARGE_SURVEY:,} spectra",
        limit=0.1, kind="at most", shown="{:.0%}", measure=_memory_growth(names.RAW),
    ),
    Target(
        what="the same from a prepared file",
        limit=0.1, kind="at most", shown="{:.0%}", measure=_memory_growth(names.PREPARED),
    ),
    Target(
        what="host side from a prepared file, masked pixels filled: spectra per second of a core",
        limit=8000, kind="at least", shown="{:,.0f}",
        measure=_per_cpu_second("k", names.host_side(HOST_SPECTRA)),
    ),
    Target(
        what="second `specjax adapt`, other numbers of stars and seeds: longest compilation in seconds",
        limit=1.0, kind="at most", shown="{:.2f}", measure=_seconds("f", names.LONGEST_COMPILATION),
    ),
    Target(
        what="`specjax predict`, 1,000 raw spectra, warm cache: seconds",
        limit=10.0, kind="at most", shown="{:.1f}",
        measure=_seconds("f", names.predict_process(FEW_SPECTRA, "filled", SEEDS)),
    ),
    Target(
        what="LoRA4, 16 seeds at the sizes of the paper: times as fast as the fastest loop in PyTorch",
        limit=10.0, kind="at least", shown="{:.1f}", measure=_ratio("c", _RUN, *_LOOPS),
    ),
    Target(
        what="the same: times as fast as torch.func",
        limit=1.0, kind="at least", shown="{:.2f}", measure=_ratio("c", _RUN, BATCHED, BATCHED + COMPILED),
    ),
    Target(
        what="LoRA1+LoRA2 step, 1 seed: times as fast as PyTorch without compilation",
        limit=0.91, kind="at least", shown="{:.2f}",
        measure=_ratio("b", names.step("LoRA1+LoRA2", 8, 1), LOOP, FUSED),
    ),
)  # fmt: skip

GPU_TARGETS = (
    Target(
        what="embedding, fraction of the matrix peak",
        limit=0.5, kind="at least", shown="{:.0%}", measure=_of_peak("a", names.embedding(1024, "lamost")),
    ),
    Target(
        what="LoRA1 step of 32 seeds, fraction of the matrix peak",
        limit=0.4, kind="at least", shown="{:.0%}", measure=_of_peak("b", names.step("LoRA1", 16, 32)),
    ),
    Target(
        what="six configurations with 32 seeds at the sizes of the paper: seconds",
        limit=60.0, kind="at most", shown="{:.0f}",
        measure=_seconds("d", names.six_configurations("paper", 32)),
    ),
)  # fmt: skip
