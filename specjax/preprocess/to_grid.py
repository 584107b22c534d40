"""Conversion of observed spectra into the inputs of the two towers, on the LAMOST and Gaia XP grids."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from specjax.errors import ConfigError, DataError
from specjax.flags import FLAG_DTYPE, MAX_MASKED, Flag, mask_columns
from specjax.preprocess.continuum import BLUE, RED, fit_continuum, normalise
from specjax.preprocess.quality import mask_spikes, quality_flags, too_fast
from specjax.preprocess.resample import (
    SPEED_OF_LIGHT,
    interpolate,
    rebin,
    rows_by_grid,
    smooth,
)
from specjax.preprocess.threads import for_each
from specjax.spectra import Spectra
from specjax.typing import BoolArray, FloatArray, IntArray, StrArray
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, columns_between, widened

OVERSAMPLED = 5.0
"""FWHM in Angstrom above which LAMOST's 1.1 A pixels oversample a spectrum so much that smoothing pays."""

OVERSMOOTH = 1.2
"""FWHM after that smoothing over the FWHM before it."""

XP_REFERENCE = 107
"""Index of 5500 A on the Gaia XP grid, by whose flux XP spectra are divided."""

_MAX_BETA = 0.1  # v/c, above which a velocity to remove is taken for unknown; no star is as fast
_KERNEL_WIDTHS = 2.0  # of a FWHM; the kernel of `smooth` ends at 1.7
_MARGIN = 5.0  # Angstrom, for air wavelengths
_MARGIN_PIXELS = 8  # for the median filter
_ROWS_AT_ONCE = 128  # of a few thousand pixels


def to_lamost(
    spectra: Spectra,
    *,
    method: Literal["rebin", "interpolate"] | None = None,
    max_masked: float = MAX_MASKED,
    fwhm: float | None = None,
    fwhm_to: float | None = None,
    velocity_column: str | None = None,
) -> Spectra:
    """Convert spectra to continuum-normalised flux on the 1462 LAMOST pixels, the input of the LAMOST tower.

    Air wavelengths are converted to vacuum, spikes are masked (see `quality.mask_spikes`), the published
    continuum is divided out, and the result is resampled. As in the published pipeline, no velocity is
    removed by default. Spectra that are already input of this tower are returned unchanged.

    Args:
        spectra: n spectra in air or vacuum, any grids, any flux unit.
        method: "rebin" (the default) conserves flux and averages finer pixels; "interpolate" is the
            published linear interpolation.
        max_masked: fraction of masked pixels above which a spectrum is flagged.
        fwhm: resolution of the spectra in Angstrom, if known. If it exceeds OVERSAMPLED, the spectra are
            first smoothed to OVERSMOOTH times that FWHM: neighbouring pixels are then nearly redundant, so
            smoothing costs a fifth of the resolution and removes most of the noise.
        fwhm_to: resolution in Angstrom to which the spectra are smoothed instead; requires `fwhm`.
        velocity_column: the column of `meta` with the radial velocities to remove; "redshift" is v/c, any
            other column is in km/s.

    Returns:
        Spectra on LAMOST_WAVELENGTH; masked pixels have mask True, flux 1 and ivar 0. meta["masked_fraction"]
        is (n,); meta["flag"] is (n,), the first that applies of

        - NO_VELOCITY: the velocity to remove is unknown;
        - NO_COVERAGE: no valid pixel from 4000 to 5600 A;
        - CONTINUUM_FAILED: too few pixels, or a continuum that is not positive or does not follow the flux;
        - FEATURELESS: neither lines nor noise;
        - TOO_FAST: no `velocity_column`, and a velocity, from meta["redshift"] or else from the lines, above
          250 km/s;
        - MASKED_FRACTION: more than `max_masked`;
        - GOOD.

    Raises:
        ConfigError: if the method is unknown, `fwhm_to` comes without `fwhm` or is smaller, or options
            contradict those of prepared spectra.
        DataError: if there is no such column, or the spectra are input of the other tower.

    Examples:
        >>> wavelength = np.arange(3700.0, 5700.0)
        >>> line = 1.0 - 0.5 * np.exp(-0.5 * ((wavelength - 5000.0) / 10.0) ** 2)
        >>> grid = to_lamost(Spectra.build(wavelength, [3.0 * line, 7.0 * line]))
        >>> grid.flux.shape
        (2, 1462)
        >>> bool(np.allclose(grid.flux[0], grid.flux[1]))
        True
    """
    change = {None: rebin, "rebin": rebin, "interpolate": interpolate}.get(method)
    if change is None:
        raise ConfigError(f"resampling method {method!r} is neither 'rebin' nor 'interpolate'")
    target = _target_fwhm(fwhm, fwhm_to)
    given = {"method": method, "fwhm": fwhm, "fwhm_to": fwhm_to, "velocity_column": velocity_column}
    # A resolution that leads to no smoothing is recorded as None.
    options = {**given, "method": method or "rebin", "fwhm": None if target is None else fwhm}
    if spectra.prepared is not None:
        asked = {name: options[name] for name, value in given.items() if value is not None}
        return _already_prepared(spectra, "lamost", asked)

    def convert(observed: Spectra) -> Spectra:
        clean, unknown = _cleaned(observed, fwhm, target, velocity_column)
        result = change(normalise(clean), LAMOST_WAVELENGTH)
        flag = _lamost_flags(clean, result)
        if velocity_column is None:
            flag = np.where((flag == Flag.GOOD) & too_fast(observed, result), Flag.TOO_FAST, flag)
        return result.with_meta(flag=np.where(unknown, Flag.NO_VELOCITY, flag))

    return _convert_batches(spectra, convert, _reach(target), max_masked, options)


class Continuum(NamedTuple):
    """The continuum by which `to_lamost` divides spectra.

    Attributes:
        wavelength: (m,) or (n, m) Angstrom in vacuum, as observed.
        level: (n, m) in the unit of the flux; NaN where there is none.
        masked: (n, m) pixels that are not used, among them spikes.
    """

    wavelength: FloatArray
    level: FloatArray
    masked: BoolArray


def continuum_of(
    spectra: Spectra,
    *,
    fwhm: float | None = None,
    fwhm_to: float | None = None,
    velocity_column: str | None = None,
) -> Continuum:
    """Return the continuum that `to_lamost` fits to spectra as observed, with the same options.

    Raises:
        ConfigError: as `to_lamost`.
        DataError: as `to_lamost`; the spectra are on a model grid, where there is no continuum any more.
    """
    if spectra.prepared is not None:
        raise DataError("the spectra are on a model grid: their continuum has been divided out")
    target = _target_fwhm(fwhm, fwhm_to)
    vacuum = spectra.to_vacuum()
    part = _columns_near(vacuum.wavelength, _reach(target))
    near = vacuum.derive(
        wavelength=vacuum.wavelength[..., part],
        flux=vacuum.flux[:, part],
        ivar=vacuum.ivar[:, part],
        mask=vacuum.mask[:, part],
    )
    clean, _ = _cleaned(near, fwhm, target, velocity_column)
    level = fit_continuum(clean.wavelength, clean.flux, clean.valid)
    return Continuum(near.wavelength, level, ~clean.valid)


def _cleaned(
    observed: Spectra, fwhm: float | None, target: float | None, velocity_column: str | None
) -> tuple[Spectra, BoolArray]:
    """Mask spikes, smooth and move to rest; also return (n,) where the velocity to remove is unknown."""
    clean = mask_spikes(observed)
    if fwhm is not None and target is not None:
        clean = smooth(clean, fwhm, target)
    if velocity_column is not None:
        return _to_rest(clean, velocity_column)
    return clean, np.zeros(len(clean), dtype=bool)


def _reach(target: float | None) -> float:
    """Return how far in Angstrom the pixels that are needed lie outside the fitted range."""
    return _MARGIN if target is None else _MARGIN + _KERNEL_WIDTHS * target


def to_gaia_xp(
    spectra: Spectra, *, fwhm_from: float | None = None, max_masked: float = MAX_MASKED
) -> Spectra:
    """Convert spectra to flux over that at 550 nm on the 343 Gaia XP samples, the input of the XP tower.

    Spectra that are already input of this tower are returned unchanged.

    Args:
        spectra: n spectra in air or vacuum, any grids, any flux unit.
        fwhm_from: resolution of ground-based spectra in Angstrom, which are degraded to `gaia_xp_fwhm`. None
            for spectra that already have XP resolution; they are only resampled.
        max_masked: fraction of masked samples above which a spectrum is flagged.

    Returns:
        Spectra on GAIA_XP_WAVELENGTH; masked samples have mask True, flux 0 and ivar 0.
        meta["masked_fraction"] is (n,); meta["flag"] is (n,), one of NO_COVERAGE (no valid sample),
        NO_REFERENCE (no positive flux at 550 nm, all samples masked), MASKED_FRACTION and GOOD.

    Raises:
        ConfigError: if `fwhm_from` contradicts that of prepared spectra.
        DataError: if the spectra are input of the other tower.
    """
    if spectra.prepared is not None:
        return _already_prepared(spectra, "gaia_xp", {} if fwhm_from is None else {"fwhm_from": fwhm_from})
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
    flag = np.where(covered, np.where(usable, Flag.GOOD, Flag.NO_REFERENCE), Flag.NO_COVERAGE)
    ivar = result.ivar * scale**2 if result.has_ivar else result.ivar
    result = replace(
        result,
        flux=np.where(mask, 0.0, result.flux / scale),
        ivar=np.where(mask, 0.0, ivar),
        mask=mask,
        prepared={"tower": "gaia_xp", "fwhm_from": fwhm_from},
    )
    return result.with_meta(**mask_columns(mask, flag, max_masked))


def gaia_xp_fwhm(wavelength: FloatArray) -> FloatArray:
    """Return the resolution of Gaia XP, FWHM in Angstrom, at wavelengths in Angstrom.

    The resolving power is linear in wavelength, from 100 at 330 nm to 30 at 680 nm in BP and from 100 at
    640 nm to 70 at 1050 nm in RP, the ranges stated by the mission (Carrasco et al. 2021, A&A 652, A86); BP
    is used up to 660 nm, RP beyond.
    """
    nm = np.asarray(wavelength, dtype=np.float64) / 10.0
    power = np.where(nm < 660.0, 100.0 - 0.2 * (nm - 330.0), 100.0 - 30.0 / 410.0 * (nm - 640.0))
    return 10.0 * nm / power


def _convert_batches(
    spectra: Spectra,
    convert: Callable[[Spectra], Spectra],
    reach: float,
    max_masked: float,
    options: Mapping[str, Any],
) -> Spectra:
    """Convert spectra to the LAMOST grid in batches that fit into the cache of a core.

    `convert` gets them in vacuum, and at most the pixels within `reach` (Angstrom) of those it needs.
    """
    shape = (len(spectra), LAMOST_WAVELENGTH.size)
    flux, ivar, mask = np.empty(shape), np.empty(shape), np.empty(shape, dtype=bool)
    flag = np.empty(len(spectra), dtype=FLAG_DTYPE)
    if spectra.wavelength.ndim == 1:
        spectra = spectra.to_vacuum()  # once for all batches

    def convert_batch(batch: tuple[FloatArray, slice | IntArray]) -> None:
        grid, rows = batch
        part = _columns_near(grid, reach)
        observed = spectra.derive(
            wavelength=grid[..., part],
            flux=spectra.flux[:, part][rows],
            ivar=spectra.ivar[:, part][rows],
            mask=spectra.mask[:, part][rows],
            id=spectra.id[rows],
            meta={name: column[rows] for name, column in spectra.meta.items()},
        )
        done = convert(observed.to_vacuum())
        flux[rows] = np.where(done.mask, 1.0, done.flux)
        ivar[rows], mask[rows], flag[rows] = done.ivar, done.mask, done.meta["flag"]

    for_each(convert_batch, rows_by_grid(spectra.wavelength, len(spectra), _ROWS_AT_ONCE))
    return replace(
        spectra,
        wavelength=LAMOST_WAVELENGTH,
        medium="vacuum",
        flux=flux,
        ivar=ivar,
        mask=mask,
        prepared={"tower": "lamost", **options},
    ).with_meta(**mask_columns(mask, flag, max_masked))


def range_used(fwhm: float | None = None, fwhm_to: float | None = None) -> tuple[float, float]:
    """Return the first and the last wavelength, Angstrom in vacuum or air, that `to_lamost` looks at.

    Readers may leave out all pixels but those between them and a few beside, see `arrays.read`.

    Raises:
        ConfigError: as `to_lamost`.
    """
    return _limits(_reach(_target_fwhm(fwhm, fwhm_to)) + _MARGIN)


def _limits(reach: float) -> tuple[float, float]:
    """Return the ends of the fitted range, moved by any velocity that is removed and by `reach` Angstrom."""
    return (1 - _MAX_BETA) * BLUE - reach, (1 + _MAX_BETA) * RED + reach


def _columns_near(grid: FloatArray, reach: float) -> slice:
    """Return the pixel columns of grids, (p,) or (k, p), that can affect the result on the LAMOST grid."""
    return widened(columns_between(grid, *_limits(reach)), _MARGIN_PIXELS)


def _already_prepared(spectra: Spectra, tower: str, asked: Mapping[str, Any]) -> Spectra:
    """Return spectra unchanged if they are input of this tower, prepared with the options asked for."""
    done = spectra.prepared or {}
    if done.get("tower") != tower:
        raise DataError(f"spectra prepared for the {done.get('tower')} tower cannot be made {tower} input")
    for option, value in asked.items():
        if value != done.get(option):
            raise ConfigError(f"the spectra were prepared with {option} {done.get(option)}, not {value}")
    return spectra


def _target_fwhm(fwhm: float | None, fwhm_to: float | None) -> float | None:
    """Return the FWHM to smooth to; None for spectra that are not smoothed."""
    if fwhm_to is None:
        return OVERSMOOTH * fwhm if fwhm is not None and fwhm > OVERSAMPLED else None
    if fwhm is None or fwhm_to < fwhm:
        have = "an unknown FWHM" if fwhm is None else f"FWHM {fwhm:g} A"
        raise ConfigError(f"spectra of {have} cannot be smoothed to {fwhm_to:g} A")
    return fwhm_to


def _to_rest(spectra: Spectra, column: str) -> tuple[Spectra, BoolArray]:
    """Remove velocities from the wavelengths; also return (n,) where they are unknown and nothing changed."""
    if column not in spectra.meta:
        raise DataError(
            f"there is no column {column!r} of velocities: the spectra have {', '.join(sorted(spectra.meta))}"
        )
    try:
        beta = spectra.meta[column].astype(np.float64) / (1.0 if column == "redshift" else SPEED_OF_LIGHT)
    except (TypeError, ValueError):
        raise DataError(f"column {column!r} does not hold velocities") from None
    unknown = ~(np.abs(beta) < _MAX_BETA)  # also NaN
    factor = 1.0 + np.where(unknown, 0.0, beta)
    return spectra.derive(wavelength=spectra.wavelength / factor[:, None]), unknown


def _lamost_flags(observed: Spectra, result: Spectra) -> StrArray:
    """Return (n,) flags for coverage, the continuum and features."""
    inside = (observed.wavelength >= LAMOST_WAVELENGTH[0]) & (observed.wavelength <= LAMOST_WAVELENGTH[-1])
    covered = (observed.valid & inside).any(axis=1)
    flag = np.where(covered, result.meta["flag"], Flag.NO_COVERAGE)
    return np.where(flag == Flag.GOOD, quality_flags(result), flag)
