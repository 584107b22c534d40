"""How far should the backbone be moved, when does the selection stop, and is it right?

    python -m experiments.suite.dose --out runs/experiments/dose

LoRA1+LoRA2 with more and fewer steps and with other rates, on MILES at resolutions ever farther from what the
model knows. All states that the selection chose among are also scored on test stars, which the selection does
not see: the regret is how much smaller the scatter of the best of them would have been. The best of many is
better than it deserves, so that the regret is an upper limit. Expected: the wider the gap, the more steps
pay and the later the selection stops; its regret is a few hundredths of a dex.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.suite import figures
from experiments.suite.cases import Case, load_cases, miles_at
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
from specjax.adapt import forward
from specjax.adapt.buckets import seed_groups
from specjax.adapt.candidates import Scorer
from specjax.adapt.configuration import Configuration
from specjax.adapt.group import SeedGroup
from specjax.adapt.selection import select
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.progress import Say, silent
from specjax.train.losses import pseudo_huber
from specjax.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="name", heading="training"),
    Column(name="gap", heading="σ of zero-shot", unit="dex"),
    *SCORES,
    Column(name="stops", heading="tower stops after (steps)"),
    Column(name="heads_alone", heading="chose heads alone or nothing (%)"),
    Column(name="regret", heading="regret", unit="dex", signed=True),
    Column(name="best_stops", heading="best stops after (steps)"),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dose(Config):
    """Settings of this experiment.

    Attributes:
        targets: of the stellar libraries.
        resolutions: FWHM in Angstrom to which MILES is also degraded, at S/N 20.
        configuration: what is trained.
        steps: numbers of steps, at the default rate.
        rates: learning rates of the tower and the heads beside it, at the default number of steps.
        test: test stars of each seed, which all states are scored on.
        baselines: add rows for methods without a foundation model.
        adapt: stages and selection.
    """

    targets: tuple[str, ...] = ("miles",)
    resolutions: tuple[float, ...] = (12.0, 24.0)
    configuration: str = "lora1+lora2"
    steps: tuple[int, ...] = (20, 60, 180)
    rates: tuple[float, ...] = (1e-3, 2e-2)
    test: int = 120
    baselines: bool = True
    adapt: AdaptConfig = AdaptConfig()


def get_config() -> Dose:
    """Return the default settings."""
    return Dose()


def run(config: Dose, out: Path, say: Say) -> Results:
    """Train with every dose on every target."""
    kept = Kept(out, config)
    rows: list[Row] = []
    for case in _cases(config):
        rows += beside_strongest(_rows(config, Runner(case, kept, say)))
    return Results(
        name="dose",
        title="Dose and selection",
        question="How far should the backbone be moved, when does the selection stop, and is it right?",
        method=f"{config.configuration}, means of {config.seeds} random splits with {config.test} test stars"
        " each. The regret is the scatter of the selected state less that of the state with the smallest"
        " robust loss on the test stars.",
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(rows),
        answers=answers(rows),
        draw=lambda figure: _draw(figure, rows),
    )


def _cases(config: Dose) -> Iterator[Case]:
    """Yield the cases with fewer test stars, and MILES at further resolutions."""
    for case in load_cases(config):
        yield _with_tests(case, config.test)
        if case.name == "miles" and config.target is None:
            for fwhm in config.resolutions:
                yield _with_tests(miles_at(case, fwhm), config.test)


def _with_tests(case: Case, count: int) -> Case:
    splits = dataclasses.replace(case.splits, test=case.splits.test[:, :count])
    return dataclasses.replace(case, splits=splits)


def doses(config: Dose) -> dict[str, AdaptConfig]:
    """Return the settings of every row by name."""
    found = {}
    for steps in config.steps:
        found[f"{steps} steps"] = config.adapt.with_steps(steps)
    for rate in config.rates:
        joint = tuple(
            dataclasses.replace(
                stage,
                tower=dataclasses.replace(stage.tower, learning_rate=rate),
                head=dataclasses.replace(stage.head, learning_rate=rate),
            )
            for stage in config.adapt.joint
        )
        found[f"rate {rate:g}"] = dataclasses.replace(config.adapt, joint=joint)
    return found


def _rows(config: Dose, runner: Runner) -> list[Row]:
    """Return the rows of one target: zero-shot, all doses, and the baselines."""
    configuration = Configuration.parse(config.configuration)
    zero = runner.zero_shot_row(configuration.heads[-1])
    rows = [{**zero, "gap": zero["sigma"]}]
    for name, settings in doses(config).items():
        made = _judged(runner, configuration, name, settings)
        key = name.replace(" ", "-")
        regret = {"regret": made["best"]}
        row = runner.scored(key, name, made["selected"], kind="adapted", references=regret)
        # The gain over the best is what is lost by not knowing it, with the sign turned.
        lost = {
            "regret": -row["regret"],
            "regret_lo": -row["regret_hi"],
            "regret_hi": -row["regret_lo"],
        }
        about = {
            "gap": zero["sigma"],
            # Where heads alone were chosen, the tower has made no step.
            "stops": round(float(np.where(made["tower"] > 0, made["step"], 0).mean())),
            "best_stops": round(float(np.where(made["best_tower"] > 0, made["best_step"], 0).mean())),
            "heads_alone": round(100 * float((made["tower"] == 0).mean())),
        }
        rows.append({**row, **lost, **about})
    return rows + (runner.baseline_rows() if config.baselines else [])


def _judged(
    runner: Runner, configuration: Configuration, name: str, settings: AdaptConfig
) -> dict[str, AnyArray]:
    """Return what the selection chose and what it should have chosen, on test stars.

    Returns:
        "selected" and "best" (S, n), NaN outside the test stars; "step" and "tower" (S,) of the selected and
        "best_step" and "best_tower" (S,) of the best: after which step training stopped, and the factor on
        the updates of the tower.
    """
    case = runner.case

    def make() -> dict[str, AnyArray]:
        runner.say(f"{case.name}: {name}")
        zero = runner.zero_shot(configuration.heads[-1])
        parts = [
            _judge(case, runner, configuration, settings, case.splits[seeds], size, zero)
            for seeds, size in seed_groups(len(case.splits))
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return runner.kept.arrays(f"{case.name}/{name.replace(' ', '-')}", make)


def _judge(
    case: Case,
    runner: Runner,
    configuration: Configuration,
    settings: AdaptConfig,
    splits: Splits,
    size: int,
    zero: FloatArray,
) -> dict[str, AnyArray]:
    """Train a group of seeds, and score all candidates on unseen stars and on test stars."""
    group = SeedGroup(case.model, runner.inputs, splits, size, settings, silent)
    fits, lengths = group.fits(configuration)
    splits = group.splits
    # The scorer predicts what follows the training stars with the fit to all of these.
    more = np.concatenate([splits.validate, splits.test], axis=1)
    scorer = Scorer(case.model, case.target, dataclasses.replace(splits, validate=more), zero)
    scales = settings.tower_scales, settings.head_scales
    candidates = scorer.candidates(configuration.heads, fits, *scales)
    unit = forward.label_scale(case.model, configuration.heads[-1], case.target.label)[1]
    truth = case.target.truth[scorer.unseen] / unit
    seen = splits.train.shape[1] + splits.validate.shape[1]  # by the selection
    unseen = candidates.unseen / unit
    pick = select(dataclasses.replace(candidates, unseen=unseen[:, :, :seen]), truth[:, :seen])
    with np.errstate(invalid="ignore", over="ignore"):
        cost = pseudo_huber(unseen[:, :, seen:] - truth[:, None, seen:]).mean(axis=2)
    best = np.argmin(np.where(np.isfinite(cost), cost, np.inf), axis=1)
    steps = np.array([lengths[fit] if fit >= 0 else 0.0 for fit in candidates.fit])
    steps = steps * (candidates.step + 1)
    seeds, stars = np.arange(len(pick)), len(case.target.labelled)
    found = {
        name: splits.to_all_stars(candidates.unseen[seeds, chosen, seen:], stars)
        for name, chosen in (("selected", pick), ("best", best))
    }
    found |= {"step": steps[pick], "best_step": steps[best]}
    found |= {"tower": candidates.tower[pick], "best_tower": candidates.tower[best]}
    return {name: values[: group.count] for name, values in found.items()}


def _draw(figure: "Figure", rows: Sequence[Row]) -> None:
    """Draw the scatter against the number of steps, one line per target."""
    axis = figure.subplots()
    lines: dict[str, list[Row]] = {}
    for row in _steps(rows):
        lines.setdefault(row["target"], []).append(row)
    figures.draw_lines(axis, lines, "steps")
    axis.set(xscale="log", xlabel="steps of the backbone's factors", ylabel="σ (dex)", ylim=(0, None))
    ticks = sorted({row["steps"] for row in _steps(rows)})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    figures.legend_below(figure)


def _steps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return zero-shot-free rows that differ in the number of steps, with it as "steps"."""
    return [{**row, "steps": int(row["name"].split()[0])} for row in rows if row["name"].endswith(" steps")]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say which dose is best on each target, and when the selection stops and with what regret."""
    found = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target and row["kind"] == "adapted"]
        best = smallest(mine)
        text = f"On {target}, where zero-shot has {best['gap']:.3f} dex, the smallest scatter is that of"
        text += f" {best['name']}, {figure_of(best)}"
        found.append("; ".join(part for part in (text, against_baseline(best)) if part) + ".")
        longest = max(_steps(mine), key=lambda row: int(row["steps"]))
        found.append(
            f"With {longest['steps']} steps on offer there, the selection stops the tower after"
            f" {longest['stops']} on average, the state that is best on the test stars after"
            f" {longest['best_stops']}; the regret is {figure_of(longest, 'regret')}."
        )
    return found


def answers(rows: Sequence[Row]) -> dict[str, str]:
    """Compare the best dose without and with a gap."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    texts = []
    for target in dict.fromkeys((targets[0], targets[-1])):
        best = smallest(row for row in _steps(rows) if row["target"] == target)
        texts.append(f"{best['steps']} steps are best on {target} ({figure_of(best)})")
    regrets = [row["regret"] for row in rows if row["kind"] == "adapted"]
    return {
        "dose": f"{', and '.join(texts)}; the selection from validation and training stars loses"
        f" {np.median(regrets):.3f} dex at the median against a choice that knows the test stars."
    }


if __name__ == "__main__":
    command("dose", get_config(), run, __doc__)
