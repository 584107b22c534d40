"""Do the rank, the scale, the rates, the layers and the start of the factors matter?

    python -m experiments.suite.factors --out runs/experiments/factors

One row per change of the default settings of LoRA1+LoRA2, in the backbone unless stated otherwise. Expected:
rank, scale and start change the scatter by a few hundredths of a dex at most, less than the choice of what is
trained; adapting the last block only costs some of the gain.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from experiments.suite.wording import against_baseline, change, listed, significance, smallest
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.stage import Stage
from specjax.foundation import Foundation
from specjax.lora import adaptable_layers
from specjax.progress import Say

DEFAULT = "default"

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="name", heading="factors"),
    *SCORES,
    Column(name="sigma_gain", heading="gain over the default", unit="dex", signed=True),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors(Config):
    """Settings of this experiment.

    Attributes:
        configuration: what is trained.
        ranks: ranks of the backbone's factors, at an unchanged alpha/rank.
        scales: factors on alpha/rank of the backbone.
        ratios: rate of B over that of A (LoRA+), in all groups.
        variants: further rows by name: freeze-a (LoRA-FA), q_proj, kv_proj, out_proj, last-block, pissa, eva.
        baselines: add rows for methods without a foundation model.
        adapt: stages and selection of the default.
    """

    configuration: str = "lora1+lora2"
    ranks: tuple[int, ...] = (1, 2, 8, 16)
    scales: tuple[float, ...] = (0.25, 4.0)
    ratios: tuple[float, ...] = (1.0, 16.0)
    variants: tuple[str, ...] = ("freeze-a", "q_proj", "kv_proj", "out_proj", "last-block", "pissa", "eva")
    baselines: bool = True
    adapt: AdaptConfig = AdaptConfig()


def get_config() -> Factors:
    """Return the default settings."""
    return Factors()


def run(config: Factors, out: Path, say: Say) -> Results:
    """Train with every change of the factors."""
    kept = Kept(out, config)
    rows: list[Row] = []
    for case in load_cases(config):
        rows += beside_strongest(_rows(config, Runner(case, kept, say)))
    own = [row for row in rows if row["target"] == rows[0]["target"]]
    return Results(
        name="factors",
        title="Rank, rates, layers and starts of the factors",
        question="Do the rank, the scale, the rates, the layers and the start of the factors matter?",
        method=f"{config.configuration}, means of {config.seeds} random splits, one change of the default in"
        " each row: of the backbone's factors, and for LoRA+, LoRA-FA (freeze-a) and the starts of the"
        " heads' factors too. Gains are paired by star and seed.",
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(rows),
        answers=answers(rows),
        draw=lambda figure: figures.draw_bars(
            figures.tall(figure, len(own)), own, [str(row["name"]) for row in own]
        ),
    )


def settings_of(config: Factors, model: Foundation) -> dict[str, tuple[AdaptConfig, Foundation]]:
    """Return the settings and the model of every row, the default first."""
    base = config.adapt
    rows = {DEFAULT: (base, model)}
    for rank in config.ranks:
        ranks = (("lamost/backbone", rank),)
        rows[f"rank {rank}"] = dataclasses.replace(base, ranks=ranks), model
    for scale in config.scales:
        rows[f"alpha x {scale:g}"] = base, _with_scale(model, scale)
    for ratio in config.ratios:
        rows[f"LoRA+ ratio {ratio:g}"] = _in_all_stages(base, ratio=ratio), model
    for variant in config.variants:
        rows[variant] = _variant(base, model, variant), model
    return rows


def _variant(base: AdaptConfig, model: Foundation, name: str) -> AdaptConfig:
    if name == "freeze-a":
        return _in_all_stages(base, freeze_a=True)
    if name == "pissa":
        return dataclasses.replace(base, start="pissa")
    if name == "eva":
        return dataclasses.replace(base, start="eva")
    kept = f"blocks_{model.config.specformer.num_layers - 1}/" if name == "last-block" else name
    rules = tuple(
        (f"^{layer}$", 0)
        for layer in adaptable_layers(model.params)
        if layer.startswith("lamost/backbone/") and kept not in layer
    )
    return dataclasses.replace(base, ranks=rules)


def _in_all_stages(base: AdaptConfig, **changes: float | bool) -> AdaptConfig:
    """Return the same with changes in all stages, except for the ratio where only heads are trained."""
    head = {name: value for name, value in changes.items() if name != "ratio"}

    def changed(stages: Sequence[Stage], values: Mapping[str, Any]) -> tuple[Stage, ...]:
        return tuple(dataclasses.replace(stage, **values) for stage in stages)

    return dataclasses.replace(base, head=changed(base.head, head), joint=changed(base.joint, changes))


def _with_scale(model: Foundation, by: float) -> Foundation:
    lora1 = dataclasses.replace(model.config.lora1, alpha=by * model.config.lora1.alpha)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, lora1=lora1))


def _rows(config: Factors, runner: Runner) -> list[Row]:
    """Return the rows of one target, the default first, and the baselines."""
    rows, reference = [], None
    for name, (settings, model) in settings_of(config, runner.case.model).items():
        key = name.replace(" ", "-")
        made = runner.adapt(key, config.configuration, settings, model=model)["predictions"]
        rows.append(runner.scored(key, name, made, kind="adapted", reference=reference))
        reference = made if reference is None else reference
    return rows + (runner.baseline_rows() if config.baselines else [])


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say which change is best, which are significant, and how the starts compare."""
    found = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target and row["kind"] == "adapted"]
        default, best = mine[0], smallest(mine)
        text = f"On {target}, the default has {figure_of(default)} and {best['name']} the smallest scatter,"
        text += f" {figure_of(best)}"
        found.append("; ".join(part for part in (text, against_baseline(best)) if part) + ".")
        for sign, word in ((1, "smaller"), (-1, "larger")):
            names = [row["name"] for row in mine[1:] if significance(row, "sigma_gain") == sign]
            found.append(f"The scatter is significantly {word} than with the default with {listed(names)}.")
        starts = [row for row in mine if row["name"] in ("pissa", "eva")]
        found += [f"Started by {row['name']}, the scatter is {change(row)}." for row in starts]
    return found


def answers(rows: Sequence[Row]) -> dict[str, str]:
    """Say how far the changes move the scatter."""
    target = rows[0]["target"]
    mine = [row for row in rows if row["target"] == target and row["kind"] == "adapted"]
    if len(mine) < 2:
        return {}
    ordered = sorted(mine[1:], key=lambda row: float(row["sigma_gain"]))
    worst, best = ordered[0], ordered[-1]
    return {
        "factors": f"Of {len(mine) - 1} changes of the default ({figure_of(mine[0])} on {target}),"
        f" the best is {best['name']}, with which the scatter is {change(best)}, and the worst"
        f" {worst['name']}, with which it is {change(worst)}."
    }


if __name__ == "__main__":
    command("factors", get_config(), run, __doc__)
