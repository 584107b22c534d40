"""Label noise: how wrong may the labels of the training stars be, and does it help to know which are?

    python -m experiments.suite.label_noise --out runs/experiments/label_noise

Half of the stars, drawn at random, get labels with Gaussian errors of up to 0.3 dex, in training and
validation; test stars are scored with the labels as they are. A row is trained without telling the model,
with the weights 1/(s^2 + error^2) in training and selection, or without the stars of wrong labels. Expected:
the robust loss bears such errors, and to know of them helps little.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.suite import cases, figures, frame
from experiments.suite.cases import Case
from experiments.suite.frame import BASELINE, SCORES, Column, Kept, Results, Row, beside_strongest, figure_of
from experiments.suite.runner import Runner
from experiments.suite.wording import change
from specjax.adapt.configuration import Configuration
from specjax.adapt.target import Target
from specjax.progress import Say
from specjax.typing import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNTOLD, TOLD, LEFT_OUT = "untold", "told", "left out"

_HARDLY = 1e-6  # of the weight of others: a star that is left out

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="error", heading="label error", unit="dex"),
    Column(name="name", heading="row"),
    *SCORES,
    Column(name="sigma_gain", heading="gain in σ over untold", unit="dex", signed=True),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Settings of `frame.Config`, and those below.

    Attributes:
        errors: standard deviations of the errors, in the unit of the label.
        share: of the stars whose labels are perturbed.
        scatter: s in the weights 1/(s^2 + error^2), the scatter that an adapted model has with exact labels.
        configuration: what is adapted.
    """

    targets: tuple[str, ...] = ("miles",)
    seeds: int = 8
    errors: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    share: float = 0.5
    scatter: float = 0.15
    configuration: str = "lora2"


def get_config() -> Config:
    """Return the default settings."""
    return Config()


def run(config: Config, out: Path, say: Say) -> Results:
    """Adapt to labels with errors, and score all on the labels as they are."""
    kept = Kept(out, config)
    rows: list[Row] = []
    for case in cases.load_cases(config):
        for error in config.errors:
            rows += _rows(config, case, error, kept, say)
    table = beside_strongest(rows, by=("target", "error"))
    return Results(
        name="label_noise",
        title="Wrong labels",
        question="How wrong may the labels of the training stars be, and does it help to know which are?",
        method=(
            f"Labels of {config.share:.0%} of the stars are perturbed, in training and validation;"
            f" {config.configuration}, {config.seeds} seeds. Told: weights 1/(s² + error²) in training and"
            f" selection, with s = {config.scatter:g} dex. Baselines are not told."
        ),
        columns=COLUMNS,
        rows=table,
        sentences=[sentence for name in _targets(table) for sentence in sentences(_of(table, name))],
        draw=lambda figure: draw(figure, table),
    )


def perturbed(truth: FloatArray, error: float, share: float, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Add Gaussian errors to a share of the labels.

    The stars, and their errors in units of `error`, depend on the seed alone.

    Args:
        truth: (n,) labels.
        error: standard deviation.
        share: of the stars whose labels change.
        seed: of the draws.

    Returns:
        Labels (n,), and the standard errors (n,) that they have now, 0 for the others.
    """
    rng = np.random.default_rng([seed, len(truth)])
    order, draws = rng.permutation(len(truth)), rng.standard_normal(len(truth))
    errors = np.zeros(len(truth))
    errors[order[: round(share * len(truth))]] = error
    return truth + errors * draws, errors


def weights(errors: FloatArray, scatter: float) -> FloatArray:
    """Return s^2/(s^2 + error^2), the weights (n,) of stars with these errors."""
    return np.asarray(scatter**2 / (scatter**2 + errors**2))


def versions(target: Target, error: float, config: Config) -> dict[str, Target]:
    """Return the target with perturbed labels: untold, told, and without the stars of wrong labels."""
    truth, errors = perturbed(target.truth, error, config.share)
    wrong = dataclasses.replace(target, truth=truth)
    if not error:
        return {UNTOLD: wrong}
    return {
        UNTOLD: wrong,
        TOLD: dataclasses.replace(wrong, weight=weights(errors, config.scatter)),
        LEFT_OUT: dataclasses.replace(wrong, weight=np.where(errors > 0, _HARDLY, 1.0)),
    }


def _rows(config: Config, case: Case, error: float, kept: Kept, say: Say) -> list[Row]:
    """Return the rows of one size of the errors, scored with the labels of `case`."""
    made: list[Row] = []
    found: dict[str, FloatArray] = {}
    for name, target in versions(case.target, error, config).items():
        key = f"{case.name}/{error:g}/{name.replace(' ', '-')}"
        runner = Runner(dataclasses.replace(case, target=target), kept, say, key)
        if name == UNTOLD:
            others: Mapping[str, FloatArray] = runner.baselines()
            zero_shot = Configuration.parse(config.configuration).zero_shot.name
            made.append(case.score(zero_shot, runner.predictions(zero_shot), kind="zero-shot"))
        found[name] = runner.predictions(config.configuration)
        reference = None if name == UNTOLD else found[UNTOLD]
        made.append(
            case.score(f"{config.configuration}, {name}", found[name], kind="adapted", reference=reference)
        )
    made += [case.score(name, values, kind="baseline") for name, values in others.items()]
    return [{**row, "error": error} for row in made]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say what the largest errors cost on one target, and what weights win back."""
    largest = max(row["error"] for row in rows)
    by = {(row["error"], row["name"].rpartition(", ")[2]): row for row in rows if row["kind"] == "adapted"}
    first, last = by[min(row["error"] for row in rows), UNTOLD], by[largest, UNTOLD]
    said = [
        f"On {last['target']}, σ is {figure_of(first)} with the labels as they are and {figure_of(last)} with"
        f" errors of {largest:g} dex in half of them; {last['baseline']}, the strongest baseline on the same"
        f" labels, has {figure_of(last, 'baseline_sigma')}."
    ]
    if told := by.get((largest, TOLD)):
        left_out = by[largest, LEFT_OUT]
        said.append(
            f"If the model is told which labels are uncertain, σ is {change(told)}; if these stars are"
            f" left out, it is {change(left_out)}."
        )
    return said


def draw(figure: "Figure", rows: Sequence[Row]) -> None:
    """Draw the scatter against the size of the errors, for the first target."""
    own = _of(rows, _targets(rows)[0])
    lines: dict[str, list[Row]] = {}
    for row in own:
        if row["kind"] == "adapted":
            lines.setdefault(row["name"].rpartition(", ")[2], []).append(row)
    for name in (TOLD, LEFT_OUT):
        if name in lines:
            lines[name].insert(0, lines[UNTOLD][0])  # without errors there is nothing to tell
    strongest = [
        next(row for row in own if row["error"] == error and row["name"] == row["baseline"])
        for error in sorted({row["error"] for row in own})
        if any(row["error"] == error and row["name"] == row["baseline"] for row in own)
    ]
    axis = figure.subplots()
    if strongest:
        lines["strongest baseline"] = strongest
    figures.draw_lines(axis, lines, "error", dashed=("strongest baseline",))
    axis.set(xlabel="error of half of the labels (dex)", ylabel="robust scatter σ (dex)")
    figures.legend_below(figure, columns=2)


def _targets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["target"] for row in rows))


def _of(rows: Sequence[Row], target: str) -> list[Row]:
    return [row for row in rows if row["target"] == target]


if __name__ == "__main__":
    frame.command("label_noise", get_config(), run, __doc__)
