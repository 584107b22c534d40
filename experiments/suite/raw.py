"""Surveys before preprocessing: what an experiment needs that changes spectra as observed."""

import dataclasses

import numpy as np

from experiments import miles as miles_target
from experiments.libraries import GRISM
from experiments.suite import cases
from experiments.suite.frame import Config
from specjax.adapt.target import Target, make_target
from specjax.catalogues.labels import join_labels, read_labels
from specjax.errors import ConfigError
from specjax.preprocess import to_lamost
from specjax.pretrain.corpus import in_range, label_table, miles_parts, read_miles
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.spectra import Spectra
from specjax.surveys import miles, read, stelib
from specjax.typing import BoolArray, FloatArray

_SHARPEST = 3.0
"""FWHM in Angstrom that a user's spectra are taken to have if it is not stated."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """n spectra as observed, with labels.

    Attributes:
        name: of the survey.
        spectra: n flux-calibrated spectra.
        truth: (n,) the label, NaN where unknown.
        label: its name.
        fe_h: (n,) [Fe/H], NaN where unknown.
        usable: (n,) stars that may be labelled ones.
        fwhm: resolution, Angstrom.
    """

    name: str
    spectra: Spectra
    truth: FloatArray
    label: str
    fe_h: FloatArray
    usable: BoolArray
    fwhm: float

    def target(self, name: str, observed: Spectra, fwhm: float | None = None) -> Target:
        """Make a target of the same stars as observed by another instrument.

        Args:
            name: of the target.
            observed: n spectra of these stars.
            fwhm: the resolution that preprocessing is told; by default that of this survey.
        """
        told = self.fwhm if fwhm is None else fwhm
        lamost = to_lamost(observed, fwhm=told)
        return make_target(
            name, lamost, self.truth, label=self.label, fe_h=self.fe_h, usable=self.usable, fwhm=told
        )


def load_raw(config: Config) -> list[Raw]:
    """Read the surveys of an experiment.

    Raises:
        ConfigError: a target at low resolution, which is made of another one.
    """
    if config.target is not None:
        return [_own(config)]
    return [_library(name, config.label) for name in config.targets]


def _library(name: str, label: str) -> Raw:
    if name.endswith(GRISM):
        raise ConfigError(f"{name} is degraded already: use {name.removesuffix(GRISM)}")
    libraries = fetch_stellar_libraries()
    if name in miles_target.NAMES:
        stars = read_miles(libraries)
        parts = miles_parts(len(stars))
        chosen = np.sort(np.concatenate([parts.labelled, parts.unlabelled]))
        stars, usable, fwhm = stars[chosen], np.isin(chosen, parts.labelled), miles.FWHM
    else:
        stars, fwhm = stelib.read(libraries / "stelib"), stelib.FWHM
        stars = stars.with_meta(redshift=np.zeros(len(stars)))  # they are in the rest frame
        usable = in_range(label_table(stars))
    return Raw(
        name=name,
        spectra=stars,
        truth=stars.meta[label],
        label=label,
        fe_h=stars.meta["fe_h"],
        usable=usable,
        fwhm=fwhm,
    )


def _own(config: Config) -> Raw:
    """Read the survey of a user's folder, see `frame.Config.target`."""
    assert config.target is not None
    files = {name: cases.only_file(config.target, name) for name in ("spectra", "labels")}
    spectra, table = read(files["spectra"]), files["labels"]
    columns = [config.label]
    if config.label != "fe_h" and "fe_h" in read_labels(table).colnames:
        columns.append("fe_h")
    joined = join_labels(spectra.id, read_labels(table, columns), columns)
    unknown = np.full(len(spectra), np.nan)
    return Raw(
        name=spectra.survey or config.target.name,
        spectra=spectra,
        truth=joined[config.label],
        label=config.label,
        fe_h=joined.get("fe_h", unknown),
        usable=np.ones(len(spectra), bool),
        fwhm=_SHARPEST if config.fwhm is None else config.fwhm,
    )
