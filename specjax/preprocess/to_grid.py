"""From spectra as observed to the inputs of the two towers: LAMOST pixels, Gaia XP samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from specjax.errors import ConfigError, DataError
from specjax.preprocess.continuum import normalise
from specjax.preprocess.quality import doubts, too_fast, without_spikes
from specjax.preprocess.resample import SPEED_OF_LIGHT, interpolate, rebin, smooth
from specjax.spectra import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, Spectra
from specjax.typing import BoolArray, FloatArray

MAX_MASKED = 0.2
"""Share of masked pixels above which a row is flagged."""

OVERSAMPLED = 5.0
"""FWHM in Angstrom above which LAMOST's 1.1 A pixels sample a spectrum so finely that smoothing pays."""

OVERSMOOTH = 1.2
"""FWHM after that smoothing over the FWHM before it."""

XP_REFERENCE = 107
"""Index of 5500 A on the Gaia XP grid, where XP-like flux is 1."""


def to_lamost(
    spectra: Spectra,
    *,
    method: Literal["rebin", "interpolate"] | None = None,
    max_masked: float = MAX_MASKED,
    fwhm: float | None = None,
    fwhm_to: float | None = None,
    velocity_column: str | None = None,
) -> Spectra:
    """Continuum-normalised flux on the 1462 LAMOST pixels, the input of the LAMOST tower.

    Air wavelengths are converted, the published continuum is taken out, then the grid is changed. As in the
    published pipeline, no velocity shift is applied unless it is asked for. Spectra that went through here
    before, which `prepared` says, come back as they are.

    Args:
      spectra: n spectra in air or vacuum, any grids, any flux unit.
      method: "rebin" conserves flux and averages finer pixels (None means this); "interpolate" is the
        published linear interpolation.
      max_masked: share of masked pixels above which a row is flagged.
      fwhm: resolution of the spectra in Angstrom, if it is known. Where a resolution element spans more than
        OVERSAMPLED of it, the spectra are smoothed to OVERSMOOTH times that FWHM first: neighbouring pixels
        then hold the same light, so this costs a fifth of the resolution and takes most of the noise away.
      fwhm_to: resolution in Angstrom to lower them to instead, from `fwhm`.
      velocity_column: the column of `meta` with each star's radial velocity, to be taken out: "redshift" is
        v/c, any other km/s.

    Returns:
      Spectra on LAMOST_WAVELENGTH. Masked pixels have mask True, flux 1 and ivar 0. meta["masked_fraction"]
      is (n,); meta["flag"] is (n,) and "" or why the row must not be trusted as it is: "no_velocity" (its
      velocity is asked for and not known), "no_coverage" (not one valid pixel from 4000 to 5600 A),
      "continuum_failed" (too little to fit, not positive, or not near the flux), "featureless" (nothing
      varies), "too_fast" (meta["redshift"], or where it is not known the lines, are beyond
      250 km/s and that is not asked to be taken out),
      "masked_fraction" (more than `max_masked`). Cosmic rays and the like are masked, see
      `plausible.without_spikes`.

    Raises:
      ConfigError: an unknown method, `fwhm_to` without `fwhm` or finer than it, or options that contradict
        what prepared spectra went through.
      DataError: no such column, or spectra prepared for the other tower.
    """
    change = {None: rebin, "rebin": rebin, "interpolate": interpolate}.get(method)
    if change is None:
        raise ConfigError(f"resampling method {method!r} is neither 'rebin' nor 'interpolate'")
    target = _resolution(fwhm, fwhm_to)
    done = {
        "method": method or "rebin",
        "fwhm": None if target is None else fwhm,  # a resolution that changes nothing is as good as none
        "fwhm_to": fwhm_to,
        "velocity_column": velocity_column,
    }
    if spectra.prepared is not None:
        given = {"method": method, "fwhm": fwhm, "fwhm_to": fwhm_to, "velocity_column": velocity_column}
        return _as_prepared(
            spectra, "lamost", {name: done[name] for name in given if given[name] is not None}
        )
    vacuum = without_spikes(spectra.to_vacuum())
    if fwhm is not None and target is not None:
        vacuum = smooth(vacuum, fwhm, target)
    moving = np.zeros(len(spectra), dtype=bool)
    if velocity_column is not None:
        vacuum, moving = _at_rest(vacuum, velocity_column)
    result = change(normalise(vacuum), LAMOST_WAVELENGTH)
    inside = (vacuum.wavelength >= LAMOST_WAVELENGTH[0]) & (vacuum.wavelength <= LAMOST_WAVELENGTH[-1])
    covered = (vacuum.valid & inside).any(axis=1)
    flag = np.where(covered, result.meta["flag"], "no_coverage")
    flag = np.where(flag == "", doubts(result), flag)
    if velocity_column is None:
        flag = np.where((flag == "") & too_fast(spectra, result), "too_fast", flag)
    flag = np.where(moving, "no_velocity", flag)
    result = replace(
        result, flux=np.where(result.mask, 1.0, result.flux), prepared={"tower": "lamost", **done}
    )
    return _flagged(result, flag, max_masked)


def to_gaia_xp(
    spectra: Spectra, *, fwhm_from: float | None = None, max_masked: float = MAX_MASKED
) -> Spectra:
    """Flux on the 343 Gaia XP samples divided by the flux at 550 nm, the input of the XP tower.

    Args:
      spectra: n spectra in air or vacuum, any grids. Real XP spectra come through unchanged but for the
        division, and what went through here before comes back as it is.
      fwhm_from: the resolution of ground-based spectra in Angstrom, to be degraded to `gaia_xp_fwhm`; None
        for spectra that have XP resolution already: they are only put on the grid.
      max_masked: share of masked samples above which a row is flagged.

    Returns:
      Spectra on GAIA_XP_WAVELENGTH. Masked samples have mask True, flux 0 and ivar 0.
      meta["masked_fraction"], and meta["flag"]: "no_coverage" (no valid sample), "no_reference" (no positive
      flux at 550 nm; all samples masked), "masked_fraction", or "".

    Raises:
      ConfigError: a resolution that contradicts what prepared spectra went through.
      DataError: spectra prepared for the other tower.
    """
    if spectra.prepared is not None:
        return _as_prepared(spectra, "gaia_xp", {} if fwhm_from is None else {"fwhm_from": fwhm_from})
    vacuum = spectra.to_vacuum()
    if fwhm_from is None:
        result = rebin(vacuum, GAIA_XP_WAVELENGTH)
    else:
        result = smooth(vacuum, fwhm_from, gaia_xp_fwhm(GAIA_XP_WAVELENGTH), GAIA_XP_WAVELENGTH)
    covered = (~result.mask).any(axis=1)
    reference = result.flux[:, XP_REFERENCE]
    usable = ~result.mask[:, XP_REFERENCE] & (reference > 0)
    scale = np.where(usable, reference, 1.0)[:, None]
    mask = result.mask | ~usable[:, None]
    flag = np.where(covered, np.where(usable, "", "no_reference"), "no_coverage")
    ivar = result.ivar * scale**2 if result.has_ivar else result.ivar
    result = replace(
        result,
        flux=np.where(mask, 0.0, result.flux / scale),
        ivar=np.where(mask, 0.0, ivar),
        mask=mask,
        prepared={"tower": "gaia_xp", "fwhm_from": fwhm_from},
    )
    return _flagged(result, flag, max_masked)


def gaia_xp_fwhm(wavelength: FloatArray) -> FloatArray:
    """Resolution of Gaia XP, FWHM in Angstrom, as two straight lines in resolving power.

    From 100 at 330 nm to 30 at 680 nm in BP and from 100 at 640 nm to 70 at 1050 nm in RP, the ranges that
    the mission states (Carrasco et al. 2021, A&A 652, A86); BP up to 660 nm, RP beyond.
    """
    nm = np.asarray(wavelength, dtype=np.float64) / 10.0
    power = np.where(nm < 660.0, 100.0 - 0.2 * (nm - 330.0), 100.0 - 30.0 / 410.0 * (nm - 640.0))
    return 10.0 * nm / power


def _as_prepared(spectra: Spectra, tower: str, asked: Mapping[str, Any]) -> Spectra:
    """Spectra that are a tower's input already, if they are that tower's and nothing else is asked for."""
    done = spectra.prepared or {}
    if done.get("tower") != tower:
        raise DataError(f"spectra prepared for the {done.get('tower')} tower cannot be made {tower} input")
    for option, value in asked.items():
        if value != done.get(option):
            raise ConfigError(f"the spectra were prepared with {option} {done.get(option)}, not {value}")
    return spectra


def _resolution(fwhm: float | None, fwhm_to: float | None) -> float | None:
    """The FWHM to smooth to, None for spectra that are to stay as they are."""
    if fwhm_to is None:
        return OVERSMOOTH * fwhm if fwhm is not None and fwhm > OVERSAMPLED else None
    if fwhm is None or fwhm_to < fwhm:
        have = "an unknown FWHM" if fwhm is None else f"FWHM {fwhm:g} A"
        raise ConfigError(f"spectra of {have} cannot be smoothed to {fwhm_to:g} A")
    return fwhm_to


def _at_rest(spectra: Spectra, column: str) -> tuple[Spectra, BoolArray]:
    """The spectra with velocities taken out of their wavelengths, and which (n,) have none and stay."""
    if column not in spectra.meta:
        raise DataError(
            f"there is no column {column!r} of velocities: the spectra have {', '.join(sorted(spectra.meta))}"
        )
    try:
        beta = spectra.meta[column].astype(np.float64) / (1.0 if column == "redshift" else SPEED_OF_LIGHT)
    except (TypeError, ValueError):
        raise DataError(f"column {column!r} does not hold velocities") from None
    unknown = ~(np.abs(beta) < 0.1)  # NaN, and what is no star's velocity
    factor = 1.0 + np.where(unknown, 0.0, beta)
    return replace(spectra, wavelength=spectra.wavelength / factor[:, None]), unknown


def _flagged(spectra: Spectra, flag: np.ndarray, max_masked: float) -> Spectra:
    fraction = spectra.mask.mean(axis=1)
    flag = np.where((flag == "") & (fraction > max_masked), "masked_fraction", flag)
    return spectra.with_meta(masked_fraction=fraction, flag=flag.astype("<U32"))
