"""The models, targets and splits of an experiment, and the baselines on the same stars."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments import main_table, miles, stelib
from experiments.source import Source, observed_source, simulated_source
from experiments.suite.frame import Config, Row
from specjax import load
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits, draw_splits
from specjax.adapt.target import Target, make_target
from specjax.catalogues.labels import join_labels, read_labels
from specjax.errors import ConfigError, DataError
from specjax.foundation import Foundation
from specjax.prepare.pool import core_count
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.pretrain.corpus import LABELS, read_miles
from specjax.report.metrics import summarise
from specjax.report.results import Kind
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import miles as miles_survey
from specjax.surveys import read, read_xp
from specjax.typing import FloatArray

TRAIN, VALIDATE = 60, 10
"""Training and validation stars of targets other than MILES."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A model and a target with its splits.

    Attributes:
        model: the model to adapt.
        target: the survey, with n labelled stars.
        splits: S splits of these stars.
    """

    model: Foundation
    target: Target
    splits: Splits

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.target.name

    def score(
        self,
        name: str,
        predictions: FloatArray,
        *,
        kind: Kind,
        reference: FloatArray | None = None,
        splits: Splits | None = None,
        subset: str = "all",
    ) -> Row:
        """Score predictions on the test stars of each seed.

        Args:
            name: of the row.
            predictions: (S, n) or (n,).
            kind: how they were made.
            reference: (S, n) or (n,) predictions that the gains refer to.
            splits: splits in place of those of the case.
            subset: one of `metrics.SUBSETS`.

        Returns:
            target, name, kind, and the scores of `metrics.summarise`.
        """
        splits = splits or self.splits
        rows = splits.test
        scores = summarise(
            self.target.truth[rows],
            splits.of_test_stars(predictions),
            fe_h=self.target.fe_h[rows],
            stars=self.target.labelled.id[rows],
            reference=None if reference is None else splits.of_test_stars(reference),
        )
        row = next(row for row in scores if row["subset"] == subset)
        return {"target": self.name, "name": name, "kind": kind, **row}


def load_cases(config: Config) -> Iterator[Case]:
    """Yield the cases of an experiment one after the other.

    Raises:
        ConfigError: the preset "paper" without a model, or a model that has learned the target's labels.
        DataError: the folder of the user's survey lacks spectra or labels.
    """
    if config.preset == "paper" and config.model is None:
        raise ConfigError("the preset paper needs the folder of converted weights: --model DIR")
    if config.target is not None:
        yield make_case(config, own_target(config))
        return
    libraries = fetch_stellar_libraries()
    for target in main_table.make_targets(libraries, config.targets):
        yield make_case(config, _with_label(libraries, target, config.label))


def _with_label(libraries: Path, target: Target, label: str) -> Target:
    """Return the target with another label of the library's stars."""
    if label == target.label:
        return target
    make = miles.make_targets if target.name in miles.NAMES else stelib.make_targets
    return make(libraries, (target.name,), label)[0]


def make_case(config: Config, target: Target) -> Case:
    """Load the model for a target and draw its splits.

    Raises:
        ConfigError: the model has learned the target's labels.
    """
    on_miles = target.name in miles.NAMES
    name = config.model or ("mini-physics" if on_miles else "mini")
    if name == "mini" and on_miles:
        raise ConfigError("mini was trained on MILES stars and their labels: use mini-physics")
    sizes = (miles.TRAIN, miles.VALIDATE) if on_miles else (TRAIN, VALIDATE)
    splits = draw_splits(
        len(target.labelled),
        seeds=config.seeds,
        train=sizes[0] if config.train is None else config.train,
        validate=sizes[1] if config.validate is None else config.validate,
    )
    return Case(model=_loaded(name), target=target, splits=splits)


@functools.lru_cache(maxsize=2)
def _loaded(name: str) -> Foundation:
    return load(name)


def own_target(config: Config) -> Target:
    """Build the target of a user's folder, see `Config.target`.

    Raises:
        DataError: the folder lacks spectra or labels, or holds several of them.
    """
    assert config.target is not None
    spectra, labels = (only_file(config.target, name) for name in ("spectra", "labels"))
    observed = read(spectra)
    also = ["fe_h"] if config.label != "fe_h" and "fe_h" in read_labels(labels).colnames else []
    columns = [config.label, *also]
    joined = join_labels(observed.id, read_labels(labels, columns), columns)
    return make_target(
        observed.survey or config.target.name,
        to_lamost(observed, fwhm=config.fwhm),
        joined[config.label],
        label=config.label,
        fe_h=joined.get("fe_h"),
        xp=own_xp(config.target, observed),
        fwhm=config.fwhm,
    )


def only_file(folder: Path, name: str) -> Path:
    """Return the folder or file `name` or `name.*` in a folder.

    Raises:
        DataError: there is none, or several.
    """
    found = [path for path in (folder / name, *sorted(folder.glob(f"{name}.*"))) if path.exists()]
    if len(found) != 1:
        raise DataError(f"{folder} must hold one {name} or {name}.*, not {len(found)}")
    return found[0]


def own_xp(folder: Path, observed: Spectra) -> Spectra | None:
    """Return the Gaia XP spectra of a user's folder in the order of the observed ones; None without them."""
    files = sorted(folder.glob("xp.*"))
    if not files:
        return None
    prepared = read_xp(files[0])
    xp = to_gaia_xp(read(files[0])) if prepared is None else prepared
    row_of = {name: row for row, name in enumerate(xp.id.tolist())}
    rows = np.array([row_of.get(name, -1) for name in observed.id.tolist()])
    if (rows < 0).all():
        raise DataError(f"{files[0]} has no spectrum of any star: no id is that of an observed spectrum")
    ordered, missing = xp[np.maximum(rows, 0)], (rows < 0)[:, None]
    return dataclasses.replace(ordered, mask=ordered.mask | missing, id=observed.id)


def baselines(case: Case, splits: Splits | None = None) -> Mapping[str, FloatArray]:
    """Return predictions (S, n) by baseline, trained on the same labels, NaN outside the test stars.

    They are those of the main table for [Fe/H], and for other labels those that need no trained network.
    """
    splits = splits or case.splits
    libraries = fetch_stellar_libraries()
    source = _source(libraries, case.model.config.name != "mini")
    if case.target.label == "fe_h":
        made = main_table.Baselines(libraries, source, AdaptConfig(), everything=False)
        return made(case.target, splits)
    return _of_other_label(case, splits, source)


def _of_other_label(case: Case, splits: Splits, source: Source) -> dict[str, FloatArray]:
    from experiments.baselines import run_baselines

    stars = case.target.labelled
    made = run_baselines(
        source.flux,
        source.labels[:, LABELS.index(case.target.label)],
        source.fill.apply(stars.flux, stars.ivar if stars.has_ivar else None, stars.mask),
        case.target.truth,
        splits.train,
        splits.test,
        jobs=core_count(),
    )
    return {name: splits.to_all_stars(predicted, len(stars)) for name, predicted in made.items()}


@functools.lru_cache(maxsize=2)
def _source(libraries: Path, simulated: bool) -> Source:
    return (simulated_source if simulated else observed_source)(libraries)


def miles_at(case: Case, fwhm: float, snr: float = grism.SNR) -> Case:
    """Return MILES with its splits as a survey of another resolution would observe it.

    Args:
        case: MILES as observed.
        fwhm: resolution in Angstrom.
        snr: signal to noise per pixel.
    """
    libraries = fetch_stellar_libraries()
    stars = read_miles(libraries).select(case.target.labelled.id)
    lamost = to_lamost(grism.degrade(stars, fwhm, snr, fwhm_from=miles_survey.FWHM), fwhm=fwhm)
    target = make_target(
        f"miles-{fwhm:g}A",
        lamost,
        case.target.truth,
        label=case.target.label,
        fe_h=case.target.fe_h,
        fwhm=fwhm,
    )
    if len(target.labelled) != len(case.target.labelled):
        raise DataError(f"{target.name}: some spectra of MILES cannot be used at this resolution")
    return dataclasses.replace(case, target=target)
