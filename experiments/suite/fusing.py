"""Is one adapter that is fused from all seeds as good as the mean of their predictions?

    python -m experiments.suite.fusing --out runs/experiments/fusing

For each of several splits, seeds that differ in all but the split: their mean accuracy, the one that is best
on the validation stars, the mean of their predictions, and the adapter whose products are the means of
theirs. Expected: the fused adapter and the mean of the predictions agree to a few thousandths of a dex, and a
single seed is hardly worse where only heads are trained.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.suite import figures
from experiments.suite.cases import load_cases
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
from experiments.suite.wording import against_baseline, change
from specjax.adapt.configuration import Configuration
from specjax.adapt.fusing import fuse_seeds
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.progress import Say
from specjax.train.losses import pseudo_huber
from specjax.typing import AnyArray, FloatArray

SINGLE, BEST, MEAN, FUSED = "mean of single seeds", "best seed", "mean of predictions", "fused"

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="configuration", heading="configuration"),
    Column(name="way", heading="prediction"),
    *SCORES,
    Column(name="sigma_gain", heading="gain over the best seed", unit="dex", signed=True),
    Column(name="spread", heading="scatter between seeds", unit="dex"),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusing(Config):
    """Settings of this experiment; `seeds` is the number of splits.

    Attributes:
        members: seeds that are fused on each split.
        configurations: what is adapted.
        baselines: add rows for methods without a foundation model.
        adapt: stages and selection.
    """

    targets: tuple[str, ...] = ("miles", "miles-grism")
    members: int = 4
    configurations: tuple[str, ...] = ("lora2", "lora4", "lora1+lora2")
    baselines: bool = True
    adapt: AdaptConfig = AdaptConfig()


def get_config() -> Fusing:
    """Return the default settings."""
    return Fusing()


def run(config: Fusing, out: Path, say: Say) -> Results:
    """Adapt all seeds on all splits, and fuse them."""
    kept = Kept(out, config)
    rows: list[Row] = []
    for case in load_cases(config):
        runner = Runner(case, kept, say)
        copies = [
            case.splits[np.array([split])].repeated(config.members) for split in range(len(case.splits))
        ]
        own = [row for name in config.configurations for row in _rows(config, runner, name, copies)]
        others = runner.baseline_rows() if config.baselines else []
        rows += beside_strongest(own + [{**row, "configuration": row["name"]} for row in others])
    return Results(
        name="fusing",
        title="Fusing seeds",
        question="Is one adapter that is fused from all seeds as good as the mean of their predictions?",
        method=f"Means of {config.seeds} random splits with {config.members} seeds each, which share the"
        " split and differ in all other random numbers. The best seed is the one with the smallest robust"
        " loss on the validation stars.",
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(rows),
        draw=lambda figure: figures.draw_bars(
            figures.tall(figure, len(rows)), rows, [f"{row['target']}: {row['name']}" for row in rows]
        ),
    )


def _rows(config: Fusing, runner: Runner, name: str, copies: Sequence[Splits]) -> list[Row]:
    """Return the rows of one configuration on one target."""
    made = _predicted(config, runner, name, copies)
    members, splits = made["members"], runner.case.splits  # (S, M, n)
    best = members[np.arange(len(splits)), _best_members(runner, members)]
    single = members.swapaxes(0, 1).reshape(-1, members.shape[2])  # (M x S, n)
    repeated = splits.cycled(len(single))
    tests = np.take_along_axis(members.std(axis=1, ddof=1), splits.test, axis=1)
    ways = {SINGLE: single, BEST: best, MEAN: members.mean(axis=1), FUSED: made["fused"]}
    rows = []
    for way, predictions in ways.items():
        row = runner.scored(
            f"{name}/{way.replace(' ', '-')}",
            f"{name}, {way}",
            predictions,
            kind="adapted",
            reference=None if way in (SINGLE, BEST) else best,
            splits=repeated if way == SINGLE else None,
        )
        rows.append({**row, "configuration": name, "way": way})
    rows[0]["spread"] = float(np.median(tests))
    return rows


def _predicted(config: Fusing, runner: Runner, name: str, copies: Sequence[Splits]) -> dict[str, AnyArray]:
    """Return predictions of the single seeds, "members" (S, M, n), and of the fused ones, "fused" (S, n)."""
    case = runner.case
    members, fused = [], []
    for split, splits in enumerate(copies):

        def make(split: int = split, splits: Splits = splits) -> dict[str, AnyArray]:
            runner.say(f"{case.name}: {name}, split {split + 1}")
            result = runner.adaptation(config.adapt, splits).run(Configuration.parse(name))
            whole = fuse_seeds(case.model, case.target, result).predictions[0]
            return {"members": result.predictions, "fused": whole}

        found = runner.kept.arrays(f"{case.name}/{name}/split-{split}", make)
        members.append(found["members"])
        fused.append(found["fused"])
    return {"members": np.stack(members), "fused": np.stack(fused)}


def _best_members(runner: Runner, members: FloatArray) -> AnyArray:
    """Return the member (S,) that is best on the validation stars of each split."""
    case = runner.case
    rows = case.splits.validate
    predicted = np.take_along_axis(members, rows[:, None], axis=2)  # (S, M, b)
    unit = case.target.truth.std()
    losses = pseudo_huber((predicted - case.target.truth[rows][:, None]) / unit).mean(axis=2)
    return np.array(np.argmin(losses, axis=1))


def sentences(rows: Sequence[Row]) -> list[str]:
    """Compare the fused adapter with the mean of the predictions and with the best seed."""
    found = []
    known = {(row["target"], row.get("configuration"), row.get("way")): row for row in rows}
    for target, name, way in known:
        if way != FUSED:
            continue
        fused, mean, single = (known[target, name, other] for other in (FUSED, MEAN, SINGLE))
        text = (
            f"On {target}, the fused adapter of {name} has {figure_of(fused)}, the mean of the predictions"
            f" {figure_of(mean)} and a single seed {figure_of(single)}; against the best seed the scatter of"
            f" the fused one is {change(fused)}"
        )
        found.append("; ".join(part for part in (text, against_baseline(fused)) if part) + ".")
    return found


if __name__ == "__main__":
    command("fusing", get_config(), run, __doc__)
