"""How long does an adaptation take, and how much memory, at the shipped and at the published sizes?

    python -m experiments.suite.time_to_result --out runs/experiments/time_to_result

Each row is a new process with an empty compilation cache, from spectra to the predictions of all seeds: wall
time, the same with compiled programs and cached features, CPU time and peak memory. On a CPU, adaptations of
the published backbone are added up from the time per spectrum of a few steps. Expected on two cores: seconds
for heads, some tens of seconds for the backbone of the shipped model, hours for that of the published one.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.suite import figures
from experiments.suite.frame import Column, Config, Kept, Results, Row, command
from specjax.adapt.configuration import PAPER
from specjax.progress import Say, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30

COLUMNS = (
    Column(name="preset", heading="model"),
    Column(name="name", heading="configuration"),
    Column(name="seeds", heading="seeds"),
    Column(name="seconds", heading="first run", unit="s"),
    Column(name="again", heading="with compiled programs", unit="s"),
    Column(name="measured", heading="measured"),
    Column(name="cpu", heading="CPU time of the process", unit="s"),
    Column(name="memory", heading="peak memory", unit="GiB"),
    Column(name="device", heading="device"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeToResult(Config):
    """Settings of this experiment.

    Attributes:
        presets: sizes of models: mini-physics and mini as they ship, others with random weights. With `model`
            only that one is measured.
        configurations: what is adapted.
    """

    presets: tuple[str, ...] = ("mini-physics", "paper")
    configurations: tuple[str, ...] = PAPER


def get_config() -> TimeToResult:
    """Return the default settings."""
    return TimeToResult()


def run(config: TimeToResult, out: Path, say: Say) -> Results:
    """Measure every configuration at every size."""
    kept = Kept(out, config)
    presets = config.presets if config.model is None else (config.model,)
    rows = [
        kept.row(f"{Path(preset).name}/{name}", lambda p=preset, n=name: _measure(p, n, config.seeds, say))  # type: ignore[misc]
        for preset in presets
        for name in config.configurations
    ]
    return Results(
        name="time_to_result",
        title="Time to result",
        question="How long does an adaptation take, and how much memory, at the shipped and at the published"
        " sizes?",
        method="Random spectra of 120 stars, 60 of them for training and 10 for validation. Each row is a new"
        " process with an empty compilation cache. Where the time is from steps, the CPU time and the memory"
        " are those of the steps.",
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(rows),
        answers=answers(rows),
        draw=lambda figure: _draw(figures.tall(figure, len(rows)), rows),
    )


def _measure(preset: str, name: str, seeds: int, say: Say) -> Row:
    """Run one adaptation in a new process."""
    from benchmarks import processes
    from benchmarks.environment import describe

    say(f"{preset}: {name}")
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, "-m", "experiments.suite.timed", preset, name, seeds]
        # Libraries and weights are not in the cache folder; compiled programs and features are.
        done = processes.run(words, SPECJAX_CACHE=cache, SPECJAX_FEATURES_MIB="0")
    found = json.loads(done.out.splitlines()[-1])
    return {
        "preset": preset,
        "name": name,
        "kind": "zero-shot" if name.startswith("zero-shot") else "adapted",
        "seeds": seeds,
        "seconds": found["seconds"],
        "again": found["again"],
        "measured": "from steps" if found["extrapolated"] else "whole",
        "cpu": done.cpu,
        "memory": (found["peak"] or done.memory) / GIB,
        "device": describe("")["device"],
    }


def _draw(axis: "Axes", rows: Sequence[Row]) -> None:
    names = [f"{row['preset']}: {row['name']}" for row in rows]
    figures.draw_bars(axis, rows, names, "seconds")
    axis.set(xscale="log", xlabel="first run (s)")


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say how long heads and backbone take at every size."""
    found = []
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row for row in rows if row["preset"] == preset]
        parts = [
            f"{row['name']} {duration(row['seconds'])} ({duration(row['again'])} with compiled programs"
            + (", added up from steps)" if row["measured"] == "from steps" else ")")
            for row in mine
        ]
        found.append(f"{preset}, {mine[0]['seeds']} seeds, {mine[0]['device']}: {'; '.join(parts)}.")
    return found


def answers(rows: Sequence[Row]) -> dict[str, str]:
    """Say how long the fastest and the slowest adaptation of the first size take."""
    mine = [row for row in rows if row["preset"] == rows[0]["preset"] and row["kind"] == "adapted"]
    if not mine:
        return {}
    fast, slow = (pick(mine, key=lambda row: float(row["seconds"])) for pick in (min, max))
    return {
        "time": f"{fast['seeds']} seeds of {fast['preset']} take {duration(fast['seconds'])} with"
        f" {fast['name']} and {duration(slow['seconds'])} with {slow['name']}, compilation included, which"
        f" needs {slow['memory']:.1f} GiB of memory ({fast['device']})."
    }


if __name__ == "__main__":
    command("time_to_result", get_config(), run, __doc__)
