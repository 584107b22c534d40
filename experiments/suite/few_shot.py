"""How many labels does adaptation need, and how many do other methods need on the same stars?

    python -m experiments.suite.few_shot --out runs/experiments/few_shot

From 5 to 400 labels, none of which is set aside for validation: the selection cross-validates within them.
The training stars of a seed are nested, and its test stars are the same for any number of labels. Expected on
MILES: with few labels the adapted model is better than what learns from these labels alone, and the
difference vanishes with some hundreds of them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.suite import figures
from experiments.suite.cases import Case, load_cases
from experiments.suite.frame import (
    BASELINE,
    SCORES,
    Column,
    Config,
    Kept,
    Results,
    Row,
    beside_strongest,
    command,
    figure_of,
)
from experiments.suite.runner import Runner
from experiments.suite.wording import against_baseline, smallest
from specjax.adapt.configuration import Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits, draw_splits
from specjax.errors import DataError
from specjax.progress import Say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_TEST = 20
"""Fewest test stars that remain with the largest number of labels."""

ALONE = ("kernel-ridge", "gp-target")
"""Baselines that learn from these labels alone."""

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="labels", heading="labels"),
    Column(name="name", heading="method"),
    *SCORES,
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot(Config):
    """Settings of this experiment.

    Attributes:
        counts: numbers of labels; those that leave too few test stars are left out.
        configurations: what is adapted.
        baselines: add the curves of the methods without a foundation model.
        adapt: stages and selection.
    """

    targets: tuple[str, ...] = ("miles", "miles-grism")
    counts: tuple[int, ...] = (5, 10, 25, 50, 89, 200, 400)
    configurations: tuple[str, ...] = ("lora2", "lora4", "lora1+lora2")
    baselines: bool = True
    adapt: AdaptConfig = AdaptConfig()


def get_config() -> FewShot:
    """Return the default settings."""
    return FewShot()


def run(config: FewShot, out: Path, say: Say) -> Results:
    """Adapt with every number of labels."""
    kept = Kept(out, config)
    rows: list[Row] = []
    for case in load_cases(config):
        runner = Runner(case, kept, say)
        for count, splits in nested_splits(case, config).items():
            rows += _rows(config, runner, count, splits)
    rows = beside_strongest(rows, by=("target", "labels"))
    return Results(
        name="few_shot",
        title="How many labels",
        question="How many labels does adaptation need, and how many do other methods need on the same"
        " stars?",
        method=f"Means of {config.seeds} seeds, whose training stars are nested and whose test stars are the"
        " same for all numbers of labels; no further labels are used for validation.",
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(rows),
        answers=answers(rows),
        draw=lambda figure: _draw(figure, rows),
    )


def nested_splits(case: Case, config: FewShot) -> dict[int, Splits]:
    """Return splits by number of labels: the first stars of the largest training set, and its test stars.

    Raises:
        DataError: no number of labels leaves enough test stars.
    """
    stars = len(case.target.labelled)
    counts = [count for count in sorted(config.counts) if count + MIN_TEST <= stars]
    if not counts:
        raise DataError(f"{case.name}: {stars} labelled stars are too few for {min(config.counts)} labels")
    whole = draw_splits(stars, seeds=config.seeds, train=counts[-1], validate=0)
    return {count: dataclasses.replace(whole, train=whole.train[:, :count]) for count in counts}


def _rows(config: FewShot, runner: Runner, count: int, splits: Splits) -> list[Row]:
    """Return the rows of one number of labels."""
    heads = dict.fromkeys(Configuration.parse(name).heads[-1] for name in config.configurations)
    rows = [
        runner.scored(
            f"{count}/zero-shot-{head}",
            f"zero-shot-{head}",
            runner.zero_shot(head),
            kind="zero-shot",
            splits=splits,
        )
        for head in heads
    ]
    for name in config.configurations:
        made = runner.adapt(f"{count}/{name}", name, config.adapt, splits=splits)
        rows.append(
            runner.scored(f"{count}/{name}", name, made["predictions"], kind="adapted", splits=splits)
        )
    if config.baselines:
        rows += runner.baseline_rows(f"{count}/baselines", splits)
    return [{**row, "labels": count} for row in rows]


def _draw(figure: "Figure", rows: Sequence[Row]) -> None:
    """Draw the adapted rows and the strongest baselines, one panel per target."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure.set_size_inches(figures.WIDTH, 1.0 + 2.2 * len(targets))
    shown = _shown(rows)
    axes = figure.subplots(len(targets), 1, sharex=True, squeeze=False)[:, 0]
    for axis, target in zip(axes, targets, strict=True):
        mine = [row for row in rows if row["target"] == target]
        kept = _shown(mine)
        lines = {name: [row for row in mine if row["name"] == name] if name in kept else [] for name in shown}
        others = [name for name, kind in shown.items() if kind == "baseline"]
        figures.draw_lines(axis, lines, "labels", dashed=others)
        axis.set(xscale="log", ylabel="σ (dex)", title=target, ylim=(0, None))
        ticks = sorted({row["labels"] for row in mine})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[-1].set_xlabel("labels")
    figures.legend_below(figure)


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Return the kinds of what is drawn, by name: adapted rows, `ALONE`, and the strongest baselines."""
    strongest = {row["baseline"] for row in rows}
    return {
        row["name"]: row["kind"]
        for row in rows
        if row["kind"] == "adapted" or row["name"] in ALONE or row["name"] in strongest
    }


def _best(rows: Sequence[Row], target: str, count: int, kind: str) -> Row:
    """Return the row of smallest scatter of a kind, or of the methods that learn from the labels alone."""
    return smallest(
        row
        for row in rows
        if row["target"] == target
        and row["labels"] == count
        and (row["name"] in ALONE if kind == "alone" else row["kind"] == kind)
    )


def _as_good(rows: Sequence[Row], target: str, sigma: float) -> int | None:
    """Return the smallest number of labels with which a method on labels alone reaches a scatter."""
    counts = sorted({row["labels"] for row in rows if row["target"] == target})
    reached = [count for count in counts if _best(rows, target, count, "alone")["sigma"] <= sigma]
    return reached[0] if reached else None


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say what adaptation reaches with few and with many labels, beside the strongest baselines."""
    found = []
    for target in dict.fromkeys(row["target"] for row in rows):
        counts = sorted({row["labels"] for row in rows if row["target"] == target})
        for count in dict.fromkeys((counts[0], counts[len(counts) // 2], counts[-1])):
            best = _best(rows, target, count, "adapted")
            text = f"On {target} with {count} labels, {best['name']} has the smallest scatter of the adapted"
            text += f" rows, {figure_of(best)}"
            found.append("; ".join(part for part in (text, against_baseline(best)) if part) + ".")
        zero = _best(rows, target, counts[-1], "zero-shot")
        better = [n for n in counts if _best(rows, target, n, "adapted")["sigma"] < zero["sigma_lo"]]
        found.append(
            f"Zero-shot ({zero['name']}) has {figure_of(zero)} on the same stars; "
            + (f"{better[0]} labels are enough to get below its interval." if better else "no number of"
               " labels gets below its interval.")
        )  # fmt: skip
    return found


def answers(rows: Sequence[Row]) -> dict[str, str]:
    """Say how many labels the other methods need to reach what adaptation reaches with few."""
    target = rows[0]["target"]
    if not any(row["name"] in ALONE for row in rows):
        return {}
    counts = sorted({row["labels"] for row in rows if row["target"] == target})
    few = min(counts, key=lambda count: abs(count - 25))
    best, alone = _best(rows, target, few, "adapted"), _best(rows, target, few, "alone")
    needed = _as_good(rows, target, best["sigma"])
    rest = f"needs {needed} labels for that" if needed else f"does not get there with {counts[-1]}"
    return {
        "labels": f"With {few} labels on {target}, {best['name']} reaches {figure_of(best)}; the best method"
        f" that learns from these labels alone, {alone['name']}, has {figure_of(alone)} and {rest}."
    }


if __name__ == "__main__":
    command("few_shot", get_config(), run, __doc__)
