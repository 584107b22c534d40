"""Which of the four groups of factors should be trained, and does alignment with Gaia XP help?

    python -m experiments.suite.subsets --out runs/experiments/subsets

All 15 subsets of LoRA1 to LoRA4, each trained jointly on the labels, and those that train the tower below
MLP2 also with the contrastive term against the Gaia XP spectra of the unlabelled stars. Expected on the
default target, across a gap in resolution: every subset is better than zero-shot, those with LoRA1 are the
best, and the alignment changes little.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from experiments.suite import figures
from experiments.suite.cases import Case, load_cases
from experiments.suite.frame import (
    BASELINE,
    GAIN,
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
from experiments.suite.wording import against_baseline, change, significance, smallest
from specjax.adapt.configuration import Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.config import LORA_GROUPS
from specjax.progress import Say
from specjax.typing import FloatArray

SUBSETS = tuple(
    "+".join(groups) for size in range(1, 5) for groups in itertools.combinations(LORA_GROUPS, size)
)
"""The 15 subsets of the groups."""

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="name", heading="trained"),
    Column(name="xp", heading="aligned with XP"),
    *SCORES,
    GAIN,
    Column(name="lora1_gain", heading="gain from LoRA1", unit="dex", signed=True),
    Column(name="xp_gain", heading="gain from XP", unit="dex", signed=True),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subsets(Config):
    """Settings of this experiment.

    Attributes:
        subsets: groups that are trained together, joined by +.
        contrastive: weight of the alignment with Gaia XP in the rows "aligned with XP"; 0 leaves them out.
        baselines: add rows for methods without a foundation model.
        adapt: stages and selection.
    """

    subsets: tuple[str, ...] = SUBSETS
    contrastive: float = 0.1
    baselines: bool = True
    adapt: AdaptConfig = AdaptConfig()


def get_config() -> Subsets:
    """Return the default settings."""
    return Subsets()


def run(config: Subsets, out: Path, say: Say) -> Results:
    """Train all subsets on each target."""
    kept = Kept(out, config)
    rows: list[Row] = []
    for case in load_cases(config):
        rows += beside_strongest(_rows(config, Runner(case, kept, say)))
    return Results(
        name="subsets",
        title="All subsets of the groups",
        question="Which of the four groups of factors should be trained, and does alignment with Gaia XP"
        " help?",
        method=f"Means of {config.seeds} random splits; gains are against zero-shot with the same head,"
        " against the same subset without LoRA1, and against the same subset without alignment. The weight of"
        f" the alignment, {config.contrastive:g}, was not tuned.",
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(rows),
        answers=answers(rows),
        draw=lambda figure: figures.draw_bars(
            figures.tall(figure, len(rows)), rows, [_label(row) for row in rows]
        ),
    )


def _rows(config: Subsets, runner: Runner) -> list[Row]:
    """Return the rows of one target: zero-shot, the subsets and the baselines."""
    rows = [runner.zero_shot_row(head) for head in ("mlp1", "mlp2")]
    predictions: dict[tuple[str, str], FloatArray] = {}
    for name in config.subsets:
        for xp, settings in _trainings(config, name, runner.case):
            made = runner.adapt(f"{name}{'+xp' if xp == 'yes' else ''}", name, settings)
            predictions[name, xp] = made["predictions"]
            rows.append(_row(runner, name, xp, predictions))
    return rows + (runner.baseline_rows() if config.baselines else [])


def _trainings(config: Subsets, name: str, case: Case) -> list[tuple[str, AdaptConfig]]:
    """Return whether a training is aligned with XP, and its settings, for those that a subset has."""
    configuration = Configuration.parse(name)
    found = [("no", config.adapt)]
    xp = case.target.unlabelled_xp
    if (
        config.contrastive
        and xp is not None
        and not xp.mask.all()
        and configuration.tower_groups
        and "mlp2" in configuration.heads
    ):
        aligned = tuple(
            dataclasses.replace(
                stage, objective=dataclasses.replace(stage.objective, contrastive=config.contrastive)
            )
            for stage in config.adapt.joint
        )
        found.append(("yes", dataclasses.replace(config.adapt, joint=aligned)))
    return found


def _row(runner: Runner, name: str, xp: str, predictions: dict[tuple[str, str], FloatArray]) -> Row:
    """Score a subset; its gains from LoRA1 and from XP are against the rows without them."""
    others = "+".join(group for group in name.split("+") if group != "lora1")
    without = predictions.get((others, xp), predictions.get((others, "no")))
    references = {
        "lora1_gain": None if others == name else without,
        "xp_gain": predictions[name, "no"] if xp == "yes" else None,
    }
    reference = runner.zero_shot(Configuration.parse(name).heads[-1])
    mine = predictions[name, xp]
    row = runner.scored(
        f"{name}/xp-{xp}", name, mine, kind="adapted", reference=reference, references=references
    )
    return {**row, "xp": xp}


def _label(row: Row) -> str:
    return f"{row['name']}, XP" if row.get("xp") == "yes" else str(row["name"])


def _adapted(rows: Sequence[Row], target: str) -> list[Row]:
    return [row for row in rows if row["target"] == target and row["kind"] == "adapted"]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say which subset is best on each target, and what LoRA1 and XP add."""
    found = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = _adapted(rows, target)
        best = smallest(mine)
        parts = [f"On {target}, {_label(best)} has the smallest scatter, {figure_of(best)}"]
        if best.get("baseline"):
            parts.append(against_baseline(best))
        found.append("; ".join(parts) + ".")
        for key, what in (("lora1_gain", "LoRA1"), ("xp_gain", "Alignment with Gaia XP")):
            compared = [row for row in mine if key in row]
            if compared:
                found.append(_counted(target, compared, key, what))
    return found


def _counted(target: str, rows: Sequence[Row], key: str, what: str) -> str:
    """Say in how many subsets something helps or harms significantly, and how much at the median."""
    signs = [significance(row, key) for row in rows]
    middle = sorted(rows, key=lambda row: float(row[key]))[len(rows) // 2]
    return (
        f"{what} makes the scatter on {target} significantly smaller in {signs.count(1)} of {len(rows)}"
        f" subsets and larger in {signs.count(-1)}; in the median subset ({_label(middle)}) it is"
        f" {change(middle, key)}."
    )


def answers(rows: Sequence[Row]) -> dict[str, str]:
    """Answer whether LoRA adapts, which placement is best, and whether XP helps, on the first target."""
    target = rows[0]["target"]
    mine = _adapted(rows, target)
    best, signs = smallest(mine), [significance(row, "sigma_gain") for row in mine]
    known = {_label(row): row for row in mine}
    found = {
        "adapt": f"On {target}, {signs.count(1)} of {len(mine)} trainings have a significantly smaller"
        f" scatter than zero-shot with the same head; the best is {_label(best)} with {figure_of(best)},"
        f" {change(best)} than zero-shot.",
        "placement": _placement(target, best, known),
    }
    aligned = [row for row in mine if row.get("xp") == "yes"]
    if aligned:
        found["xp"] = _counted(target, aligned, "xp_gain", "Alignment with Gaia XP")
    return found


def _placement(target: str, best: Row, known: dict[str, Row]) -> str:
    """Compare the best subset with that of the paper, lora4."""
    text = f"On {target} it is {_label(best)} ({figure_of(best)})"
    if "lora4" not in known:
        return f"{text}."
    paper = known["lora4"]
    if best["name"] == "lora4":
        return f"{text}, as in the paper."
    rest = f"; lora4, the best in the paper, has {figure_of(paper)}"
    joint = known.get("lora1+lora3+lora4")
    if joint is not None and joint["sigma"] < paper["sigma"]:
        rest += (
            f". Unlike in the paper, it helps to train the tower with it: lora1+lora3+lora4 has"
            f" {figure_of(joint)}"
        )
    return f"{text}{rest}."


if __name__ == "__main__":
    command("subsets", get_config(), run, __doc__)
