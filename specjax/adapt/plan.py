"""Few-shot curves from simulation: the accuracy of a label for numbers of labelled stars and S/N.

A survey is simulated at each S/N, and the model is adapted to it with each number of training stars. The
splits contain the same stars at every S/N. Everything that is written says that it is simulated.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from specjax.adapt.adaptation import Adaptation
from specjax.adapt.checks import check_label
from specjax.adapt.configuration import Configuration
from specjax.adapt.run_folder import score
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import MIN_TRAIN, Splits, draw_splits
from specjax.adapt.target import Target, make_target
from specjax.atomic import atomic_folder
from specjax.errors import ConfigError
from specjax.foundation import DtypeChoice, Foundation, load
from specjax.preprocess import to_lamost
from specjax.progress import Say, silent
from specjax.report import plots, results
from specjax.simulate.emulator import shipped
from specjax.simulate.instrument import Instrument
from specjax.simulate.labels import LABELS
from specjax.simulate.population import MilkyWay, Population
from specjax.simulate.survey import describe, simulate_spectra
from specjax.units import symbol_and_unit

_MIN_TEST = 10  # with fewer, a scatter means little
_CENTRE = 4800.0  # Angstrom, where the resolution that `to_lamost` is given is taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What is varied, and how the adaptations are made.

    Attributes:
        label: to predict.
        configuration: to adapt.
        stars: numbers of training stars.
        snr: S/N per pixel.
        validate: validation stars, in addition to the training stars.
        test: test stars.
        seeds: splits of each adaptation.
        label_error: standard deviation of the errors of the labels that training and validation stars are
            given; scores are against the true ones.
        seed: of the simulated stars, errors and noise.

    Raises:
        ConfigError: a number that is not possible.
    """

    label: str = "fe_h"
    configuration: str = "lora4"
    stars: tuple[int, ...] = (20, 40, 80, 160)
    snr: tuple[float, ...] = (10.0, 30.0, 100.0)
    validate: int = 10
    test: int = 300
    seeds: int = 8
    label_error: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stars or min(self.stars) < MIN_TRAIN:
            raise ConfigError(f"numbers of training stars must be at least {MIN_TRAIN}, not {self.stars}")
        if not self.snr or not all(0 < snr < math.inf for snr in self.snr):
            raise ConfigError(f"signal-to-noise ratios must be positive, not {self.snr}")
        if self.validate < 0 or self.seeds < 1:
            raise ConfigError("numbers of stars and seeds must be positive")
        if self.test < _MIN_TEST:
            raise ConfigError(f"at least {_MIN_TEST} test stars are needed, not {self.test}")
        if not 0 <= self.label_error < math.inf:
            raise ConfigError(f"label_error must be finite and not negative, not {self.label_error:g}")
        if self.label not in LABELS:
            raise ConfigError(f"simulated stars have no label {self.label!r}: it is {', '.join(LABELS)}")


def plan_survey(
    *,
    model: str | Path,
    instrument: Instrument,
    out: Path,
    config: PlanConfig | None = None,
    population: Population | None = None,
    dtype: DtypeChoice = "auto",
    files: Mapping[str, str] | None = None,
    say: Say = silent,
) -> list[results.Row]:
    """Adapt to simulated surveys, and write a folder with config.json, table.json and plan.png.

    Args:
        model: a model folder, or "mini".
        instrument: of the survey; its S/N is replaced by those of `config`.
        out: the folder; an earlier run in it is replaced.
        config: what is varied.
        population: of the stars; the default is that of `specjax simulate`.
        dtype: type of the model's matrix products, as in `foundation.load`.
        files: further files of the folder, as text by name.
        say: receives lines of progress.

    Returns:
        Rows of table.json. One target per S/N, and one configuration per number of training stars; rows have
        n_train (0 for zero-shot), snr and simulated (True) besides the scores.

    Raises:
        SpecjaxError: an invalid option or model, or an instrument that cannot be simulated.
    """
    config = config or PlanConfig()
    population = population or MilkyWay()
    configuration = Configuration.parse(config.configuration)
    if not configuration.is_adapted:
        raise ConfigError(f"{configuration.name} has no use for training stars: plan another configuration")
    instruments = [instrument.with_snr(snr, snr) for snr in config.snr]
    foundation = load(model, dtype=dtype)
    check_label(foundation, config.label)
    rows: list[results.Row] = []
    with atomic_folder(out) as folder:
        targets = _of_the_same_stars([_target(one, population, config, say) for one in instruments])
        for snr, target in zip(config.snr, targets, strict=True):
            rows += [{**row, "snr": snr} for row in _curve(foundation, target, configuration, config, say)]
        rows = [{**row, "simulated": True} for row in rows]
        record = describe(instrument, population, shipped(), config.seed)
        for name, text in (files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        results.write_config(
            folder, {"plan": config, "model": str(model), "dtype": foundation.dtype, **record}
        )
        results.write_table(folder, rows)
        symbol, unit = symbol_and_unit(config.label)
        title = f"simulated {instrument.name}: {symbol} from {config.configuration}"
        plots.plot_curves(folder / "plan.png", rows, unit=unit, title=title)
    return rows


def _target(instrument: Instrument, population: Population, config: PlanConfig, say: Say) -> Target:
    """Simulate a survey, remove the velocities it reports, and make it a target with its true labels."""
    n = max(config.stars) + config.validate + config.test
    snr = instrument.snr_range[0]
    say(f"simulating {n} stars at S/N {snr:g}")
    spectra = simulate_spectra(instrument, n, population=population, seed=config.seed)
    fwhm = float(instrument.line_width(np.array([_CENTRE]))[0])
    return make_target(
        f"{spectra.survey}, S/N {snr:g}",
        to_lamost(spectra, fwhm=fwhm, velocity_column=None if instrument.rest_frame else "redshift"),
        spectra.meta[config.label],
        label=config.label,
        fe_h=spectra.meta["fe_h"],
    )


def _of_the_same_stars(targets: Sequence[Target]) -> list[Target]:
    """Reduce the targets to the stars that pass the quality checks in all of them."""
    common = set.intersection(*(set(target.labelled.id.tolist()) for target in targets))
    kept = []
    for target in targets:
        rows = np.flatnonzero([name in common for name in target.labelled.id.tolist()])
        kept.append(
            dataclasses.replace(
                target, labelled=target.labelled[rows], truth=target.truth[rows], fe_h=target.fe_h[rows]
            )
        )
    return kept


def _curve(
    model: Foundation, target: Target, configuration: Configuration, config: PlanConfig, say: Say
) -> list[results.Row]:
    """Adapt to one target with each number of stars; the test stars of a seed are always the same."""
    splits = draw_splits(
        len(target.labelled), seeds=config.seeds, train=max(config.stars), validate=config.validate
    )
    rows: list[results.Row] = []
    for stars in sorted(set(config.stars)):
        say(f"{target.name}: {configuration.name} with {stars} training stars")
        part = Splits(train=splits.train[:, :stars], validate=splits.validate, test=splits.test)
        options = AdaptConfig(seeds=config.seeds, train=stars, validate=config.validate)
        adaptation = Adaptation(model, _with_errors(target, config), part, options, say)
        adapted = [adaptation.run(one) for one in dict.fromkeys((configuration.zero_shot, configuration))]
        for row in score(target, part, adapted):
            if row["kind"] == "adapted":
                name = f"{row['configuration']}, {stars} stars"
                rows.append({**row, "configuration": name, "n_train": stars})
            elif stars == min(config.stars):
                rows.append({**row, "n_train": 0})
    return rows


def _with_errors(target: Target, config: PlanConfig) -> Target:
    """Return the target with errors added to its labels."""
    errors = np.random.default_rng(config.seed).standard_normal(len(target.truth))
    return dataclasses.replace(target, truth=target.truth + config.label_error * errors)
