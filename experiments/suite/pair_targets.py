"""Pairs of LAMOST-like and Gaia XP spectra of the same stars, for training, validation and test."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.libraries import GRISM
from experiments.suite import cases
from experiments.suite.frame import Config
from specjax.catalogues.star_names import crossmatch
from specjax.errors import ConfigError, DataError
from specjax.flags import USABLE, Flag
from specjax.preprocess import to_lamost
from specjax.pretrain.corpus import in_range, label_table, miles_parts, read_miles, xp_partners
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import mastar, miles, read, stelib
from specjax.typing import IntArray

TWO_TELESCOPES = "stelib-miles"
"""LAMOST-like spectra from STELIB; the Gaia XP side of test stars is made of MILES spectra."""

_SHARE = 0.2  # of pairs that are not in a library's parts: the rest trains


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumPairs:
    """n pairs of spectra.

    Attributes:
        name: of the pairs.
        lamost: n spectra on the LAMOST grid.
        xp: n Gaia XP spectra of the same stars.
        train: rows of pairs that may be learned from.
        validate: rows for the selection.
        test: rows of other stars.
    """

    name: str
    lamost: Spectra
    xp: Spectra
    train: IntArray
    validate: IntArray
    test: IntArray


def load_pairs(config: Config) -> Iterator[SpectrumPairs]:
    """Yield the pairs of an experiment.

    Raises:
        ConfigError: the preset "paper" without a model, or targets that have no pairs.
        DataError: a user's survey without Gaia XP spectra.
    """
    if config.preset == "paper" and config.model is None:
        raise ConfigError("the preset paper needs the folder of converted weights: --model DIR")
    if config.target is not None:
        yield _own(config)
        return
    libraries = fetch_stellar_libraries()
    for name in config.targets:
        if name == TWO_TELESCOPES:
            yield _two_telescopes(libraries)
        elif name in ("miles", f"miles{GRISM}"):
            yield _of_miles(libraries, name)
        else:
            raise ConfigError(f"no pairs {name!r}: they are miles, miles{GRISM} and {TWO_TELESCOPES}")


def _of_miles(libraries: Path, name: str) -> SpectrumPairs:
    """Pair MILES spectra with Gaia XP ones made of the same flux; the parts are those of the target."""
    stars = read_miles(libraries)
    parts = miles_parts(len(stars))
    coarse = name.endswith(GRISM)
    seen = grism.degrade(stars, fwhm_from=miles.FWHM) if coarse else stars
    lamost = to_lamost(seen, fwhm=grism.FWHM if coarse else miles.FWHM)
    xp = xp_partners(stars, miles.FWHM, mastar.read(libraries / "mastarhc_v2"))
    return _good(
        SpectrumPairs(
            name=name,
            lamost=lamost,
            xp=xp,
            train=parts.unlabelled,
            validate=parts.development,
            test=parts.labelled,
        )
    )


def _two_telescopes(libraries: Path) -> SpectrumPairs:
    """Pair STELIB spectra with Gaia XP ones: of stars that MILES shares, made of the MILES flux, to test."""
    library = mastar.read(libraries / "mastarhc_v2")
    stars, others = stelib.read(libraries / "stelib"), read_miles(libraries)
    stars = stars.with_meta(redshift=np.zeros(len(stars)))
    left, right = first_matches(stars.meta["name"].tolist(), others.meta["name"].tolist())
    usable = in_range(label_table(stars))[left]
    left, right = left[usable], right[usable]
    shared = set(
        crossmatch(stars.meta["name"].tolist(), miles.read(libraries / "miles").meta["name"].tolist())[
            0
        ].tolist()
    )
    rest = np.array([row for row in range(len(stars)) if row not in shared])
    sides = [
        xp_partners(stars[rest], stelib.FWHM, library),
        xp_partners(others[right], miles.FWHM, library),
    ]
    # They differ in the resolution that they were made of.
    xp = Spectra.concatenate([side.derive(prepared={"tower": "gaia_xp"}) for side in sides])
    chosen = np.concatenate([rest, left])
    train, validate, _ = _divided(len(rest), 0.0)
    test = len(rest) + np.arange(len(left))
    lamost = to_lamost(stars[chosen], fwhm=stelib.FWHM)
    return _good(
        SpectrumPairs(name=TWO_TELESCOPES, lamost=lamost, xp=xp, train=train, validate=validate, test=test)
    )


def first_matches(left: list[str], right: list[str]) -> tuple[IntArray, IntArray]:
    """Return the rows (k,) and (k,) of stars with the same name, each row once."""
    rows: dict[int, int] = {}
    for one, other in zip(*(found.tolist() for found in crossmatch(left, right)), strict=True):
        if one not in rows and other not in rows.values():
            rows[one] = other
    return np.array(list(rows), int), np.array(list(rows.values()), int)


def _own(config: Config) -> SpectrumPairs:
    """Read a user's pairs, and divide them at random: 60% to train, 20% each to validate and to test."""
    assert config.target is not None
    spectra = read(cases.only_file(config.target, "spectra"))
    xp = cases.own_xp(config.target, spectra)
    if xp is None:
        raise DataError(f"{config.target} has no Gaia XP spectra: put them into xp.*")
    train, validate, test = _divided(len(spectra), _SHARE)
    lamost = to_lamost(spectra, fwhm=config.fwhm)
    name = spectra.survey or config.target.name
    return _good(SpectrumPairs(name=name, lamost=lamost, xp=xp, train=train, validate=validate, test=test))


def _divided(count: int, test: float) -> tuple[IntArray, IntArray, IntArray]:
    """Divide rows at random into train, validate and test; always in the same way."""
    order = np.random.default_rng(0).permutation(count)
    cuts = [round(count * (1 - test - _SHARE)), round(count * (1 - test))]
    train, validate, rest = np.split(order, cuts)
    return train, validate, rest


def _good(pairs: SpectrumPairs) -> SpectrumPairs:
    """Leave out pairs of which one spectrum is not usable.

    Raises:
        DataError: a part has hardly any pairs left.
    """
    usable = np.isin(pairs.lamost.meta["flag"], USABLE) & ~pairs.xp.mask.all(axis=1)
    usable &= pairs.xp.meta["flag"] != Flag.NO_REFERENCE
    parts = {name: getattr(pairs, name) for name in ("train", "validate", "test")}
    kept = {name: rows[usable[rows]] for name, rows in parts.items()}
    for name, rows in kept.items():
        if len(rows) < 10:
            raise DataError(f"{pairs.name}: {len(rows)} usable pairs are too few to {name}")
    return dataclasses.replace(pairs, **kept)
