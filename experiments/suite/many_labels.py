"""Several labels: Teff, log g, [Fe/H] and [alpha/Fe], each with factors of its own, and with one set for all.

    python -m experiments.suite.many_labels --out runs/experiments/many_labels

Alone, a head is adapted to each label by itself. Together, one set of factors is trained on all labels
(`experiments.joint_labels`). A third row predicts with the factors that were trained on [Fe/H] alone. The
libraries have no [alpha/Fe]: it is measured on simulated stars, observed with an instrument of our making.
Expected: on MILES one set of factors for all labels is as good as one for each, and those trained on [Fe/H]
alone spoil the others; across a large gap, one set is worse for Teff and log g.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.baselines import target_baselines
from experiments.joint_labels import adapted_jointly
from experiments.suite import cases, figures, frame
from experiments.suite.cases import Case
from experiments.suite.frame import BASELINE, Column, Kept, Results, Row, beside_strongest, figure_of
from experiments.suite.runner import Runner
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import predict_label
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.target import make_target
from specjax.errors import ConfigError
from specjax.prepare.pool import core_count
from specjax.preprocess import to_lamost
from specjax.progress import Say
from specjax.simulate.instrument import Instrument
from specjax.simulate.survey import simulate_spectra
from specjax.typing import AnyArray, FloatArray
from specjax.units import LABELS as UNITS
from specjax.units import symbol_and_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIMULATED = "simulated"
"""Starts the names of simulated targets: simulated-lamost is one observed with the instrument lamost."""

ALONE, TOGETHER, OF_FE_H = "alone", "together", "factors of [Fe/H]"

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="label", heading="label"),
    Column(name="unit", heading="unit of σ"),
    Column(name="name", heading="row"),
    Column(name="sigma", heading="σ"),
    Column(name="r2", heading="R²"),
    Column(name="bias", heading="offset", signed=True),
    Column(name="sigma_gain", heading="gain in σ", signed=True),
    Column(name="over_alone", heading="gain in σ over alone", signed=True),
    BASELINE[0],
    Column(name="baseline_sigma", heading="its σ"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Settings of `frame.Config`, and those below.

    Attributes:
        labels: those of the libraries, or of a survey of your own.
        simulated_labels: those of simulated targets.
        simulated_stars: of a simulated target.
        configuration: of a head: lora2 or lora4.
    """

    targets: tuple[str, ...] = ("miles", "simulated-lamost", "simulated-grism")
    labels: tuple[str, ...] = ("teff", "logg", "fe_h")
    simulated_labels: tuple[str, ...] = ("teff", "logg", "fe_h", "alpha_fe")
    simulated_stars: int = 500
    configuration: str = "lora2"


def get_config() -> Config:
    """Return the default settings."""
    return Config()


def run(config: Config, out: Path, say: Say) -> Results:
    """Adapt to each label alone and to all together."""
    if config.configuration not in ("lora2", "lora4"):
        raise ConfigError(f"only heads are adapted here: lora2 or lora4, not {config.configuration}")
    kept = Kept(out, config)
    rows = [row for group in load_groups(config) for row in _rows(config, group, kept, say)]
    table = beside_strongest(rows, by=("target", "label"))
    return Results(
        name="many_labels",
        title="Several labels",
        question="Is one set of factors for several labels as good as one for each?",
        method=(
            f"{config.configuration}, {config.seeds} seeds. Alone: factors for each label; together: one set"
            " for all; the factors of [Fe/H] are also used for the other labels. Gains are over the model as"
            f" it is. Simulated targets have {config.simulated_stars} simulated stars; the stars that the"
            " model learned from were simulated by the same emulator."
        ),
        columns=COLUMNS,
        rows=table,
        sentences=sentences(table),
        draw=lambda figure: draw(figure, table),
    )


def load_groups(config: Config) -> Iterator[dict[str, Case]]:
    """Yield, for each target, its cases by label: the same stars and splits."""
    if config.target is not None:
        yield _same_stars(config, config.labels)
        return
    for name in config.targets:
        if name.startswith(SIMULATED):
            yield _simulated(config, name)
        else:
            yield _same_stars(dataclasses.replace(config, targets=(name,)), config.labels)


def _same_stars(config: Config, labels: Sequence[str]) -> dict[str, Case]:
    """Return the cases of one target; only stars with all labels are used."""
    made = {}
    for label in labels:
        (case,) = cases.load_cases(dataclasses.replace(config, label=label))
        made[label] = case
    ids = [case.target.labelled.id for case in made.values()]
    if any(not np.array_equal(one, ids[0]) for one in ids):
        raise ConfigError(f"not all stars of {config.target or config.targets[0]} have the labels {labels}")
    return made


def _simulated(config: Config, name: str) -> dict[str, Case]:
    """Simulate a survey; all spectra have all labels."""
    instrument = Instrument.get(name.removeprefix(f"{SIMULATED}-"))
    spectra = simulate_spectra(instrument, config.simulated_stars)
    lamost = to_lamost(spectra, fwhm=instrument.fwhm)
    model = dataclasses.replace(config, model=config.model or "mini-physics")
    found = {}
    for label in config.simulated_labels:
        target = make_target(
            name, lamost, spectra.meta[label], label=label, fe_h=spectra.meta["fe_h"], fwhm=instrument.fwhm
        )
        found[label] = cases.make_case(model, target)
    return found


def _rows(config: Config, group: dict[str, Case], kept: Kept, say: Say) -> list[Row]:
    """Return the rows of one target."""
    first = next(iter(group.values()))
    together = kept.array(f"{first.name}/together", lambda: _together(config, group, say))
    alone = {label: _alone(config, case, group, kept, say) for label, case in group.items()}
    made = []
    for column, (label, case) in enumerate(group.items()):
        as_it_is = _zero_shot(config, case, kept, say)
        pairs = {ALONE: alone[label][label], TOGETHER: together[..., column]}
        if label != "fe_h" and "fe_h" in group:
            pairs[OF_FE_H] = alone["fe_h"][label]
        rows = [case.score("zero-shot", as_it_is, kind="zero-shot")]
        for name, predictions in pairs.items():
            row = case.score(name, predictions, kind="adapted", reference=as_it_is)
            if name != ALONE:
                over = case.score(name, predictions, kind="adapted", reference=pairs[ALONE])
                row |= {f"over_alone{end}": over[f"sigma_gain{end}"] for end in ("", "_lo", "_hi")}
            rows.append(row)
        rows += [case.score(name, one, kind="baseline") for name, one in _baselines(case, kept).items()]
        made += [{**row, "label": label, "unit": UNITS[label]} for row in rows]
    return made


def _zero_shot(config: Config, case: Case, kept: Kept, say: Say) -> FloatArray:
    runner = Runner(case, kept, say, f"{case.name}/{case.target.label}")
    return runner.predictions(Configuration.parse(config.configuration).zero_shot.name)


def _alone(config: Config, case: Case, group: dict[str, Case], kept: Kept, say: Say) -> dict[str, AnyArray]:
    """Adapt to one label, and predict all labels with its factors: {label: (S, n)}."""
    own, key = case.target, f"{case.name}/{case.target.label}"

    def make() -> dict[str, AnyArray]:
        result = Runner(case, kept, say, key).run(config.configuration)
        heads = result.configuration.heads
        others = [label for label in group if label != own.label]
        found = {
            label: predict_label(case.model, heads, result.adapters, own.labelled, label) for label in others
        }
        return {own.label: result.predictions, **found}

    return kept.arrays(f"{key}/alone", make)


def _together(config: Config, group: dict[str, Case], say: Say) -> FloatArray:
    """Adapt to all labels at once: (S, n, labels)."""
    case = next(iter(group.values()))
    say(f"{case.name}: {config.configuration} for {', '.join(group)} together")
    truth = np.stack([one.target.truth for one in group.values()], axis=1)
    configuration = Configuration.parse(config.configuration)
    features = case.model.features(case.target.labelled, configuration.heads[0])
    return adapted_jointly(
        case.model, configuration, features, truth, list(group), case.splits, AdaptConfig()
    )


def _baselines(case: Case, kept: Kept) -> dict[str, FloatArray]:
    """Return predictions (S, n) of the methods that learn from the target's stars alone."""

    def make() -> dict[str, AnyArray]:
        flux = np.asarray(case.model.model_input(case.target.labelled).flux, np.float64)
        return dict(target_baselines(flux, case.target.truth, case.splits.train, jobs=core_count()))

    return kept.arrays(f"{case.name}/{case.target.label}/target-only", make)


def sentences(rows: Sequence[Row]) -> list[str]:
    """Compare one set of factors for all labels with one for each, for each target."""
    said = []
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        by = {(row["label"], row["name"]): row for row in own}
        parts = []
        for label in dict.fromkeys(row["label"] for row in own):
            alone, together, unit = by[label, ALONE], by[label, TOGETHER], by[label, ALONE]["unit"]
            baseline = f"{alone['baseline']} {figure_of(alone, 'baseline_sigma', unit)}"
            parts.append(
                f"{symbol_and_unit(label)[0]} {figure_of(alone, unit=unit)} alone,"
                f" {figure_of(together, unit=unit)} together ({baseline})"
            )
        said.append(f"On {target}, σ is, by label: {'; '.join(parts)}.")
        worse = [
            symbol_and_unit(row["label"])[0]
            for row in own
            if row["name"] == OF_FE_H and row["sigma_gain_hi"] < 0
        ]
        tried = sum(row["name"] == OF_FE_H for row in own)
        said.append(
            f"There, the factors trained on [Fe/H] make the predictions of {len(worse)} of {tried} other"
            f" labels worse than that of the model as it is{': ' + ', '.join(worse) if worse else ''}."
        )
    return said


def draw(figure: "Figure", rows: Sequence[Row]) -> None:
    """Draw R2 of the first target, one line per label and row."""
    own = [row for row in rows if row["target"] == rows[0]["target"] and row["kind"] != "baseline"]
    names = [f"{symbol_and_unit(row['label'])[0]}, {row['name']}" for row in own]
    figure.set_size_inches(3.5, 1.0 + 0.19 * len(names))
    axis = figure.subplots()
    figures.draw_bars(axis, own, names, "r2")
    axis.set_xlabel("R²")
    axis.set_title(rows[0]["target"], fontsize=8)


if __name__ == "__main__":
    frame.command("many_labels", get_config(), run, __doc__)
