"""New wavelength grids, lower resolution, other velocities: mask and ivar are honoured throughout.

A pixel that is masked, or whose ivar is 0, has no weight in anything; an output pixel without enough support
is masked. Specutils and spectres, the libraries for this, let flagged pixels through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import DataError
from specjax.preprocess import operators
from specjax.preprocess.operators import Operator
from specjax.spectra import Spectra
from specjax.typing import FloatArray

SPEED_OF_LIGHT = 299792.458
"""km/s."""


def rebin(spectra: Spectra, wavelength: FloatArray) -> Spectra:
    """Flux-conserving rebinning: the mean flux density over an output pixel's overlap with valid pixels.

    Args:
      spectra: n spectra on any grids.
      wavelength: (m,) Angstrom, in the medium of the spectra.

    Returns:
      (n, m) Spectra; an output pixel less than half covered by valid pixels is masked: flux 0, ivar 0.
    """
    return _apply(spectra, wavelength, lambda grid: operators.overlap(grid, wavelength))


def interpolate(spectra: Spectra, wavelength: FloatArray) -> Spectra:
    """Linear interpolation in log10(wavelength), as the published pipeline has it.

    An output pixel is masked outside the spectrum and where either neighbour is masked. Arguments as `rebin`.
    """
    return _apply(spectra, wavelength, lambda grid: operators.linear(grid, wavelength))


def smooth(
    spectra: Spectra,
    fwhm_from: float,
    fwhm_to: float | FloatArray,
    wavelength: FloatArray | None = None,
) -> Spectra:
    """Lower the resolution by a Gaussian, normalised over the valid pixels within its reach.

    Args:
      spectra: n spectra whose lines have a full width at half maximum of `fwhm_from` Angstrom.
      fwhm_from: the resolution they have.
      fwhm_to: the resolution to reach, Angstrom; one number, or one for every output pixel.
      wavelength: (m,) where to evaluate the result; the spectra's own grid where None, and then pixels that
        were masked stay masked. Only sensible for steps up to about half of `fwhm_to`.

    Returns:
      Smoothed Spectra. Their noise is correlated between neighbours, which ivar does not say.

    Raises:
      DataError: a resolution higher than the present one is asked for.
    """
    if np.any(np.asarray(fwhm_to) < fwhm_from) or fwhm_from < 0:
        raise DataError(
            f"smoothing cannot raise the resolution from FWHM {fwhm_from} A to {np.min(fwhm_to)} A"
        )
    if wavelength is None and np.all(np.asarray(fwhm_to) == fwhm_from):
        return spectra
    sigma = operators.SIGMA_PER_FWHM * np.sqrt(np.square(fwhm_to) - fwhm_from**2)

    def operator(grid: FloatArray) -> Operator:
        target = grid if wavelength is None else wavelength
        return operators.gaussian(grid, target, np.ascontiguousarray(np.broadcast_to(sigma, target.shape)))

    result = _apply(spectra, wavelength, operator)
    if wavelength is not None:
        return result
    mask = result.mask | ~spectra.valid
    return replace(
        result, mask=mask, flux=np.where(mask, 0.0, result.flux), ivar=np.where(mask, 0.0, result.ivar)
    )


def shift_velocity(spectra: Spectra, km_s: ArrayLike) -> Spectra:
    """Doppler shift by `km_s`, one number or (n,), positive to the red: wavelengths change, flux stays."""
    factor = 1.0 + np.asarray(km_s, dtype=np.float64) / SPEED_OF_LIGHT
    if factor.ndim:
        factor = factor[:, None]
    return replace(spectra, wavelength=spectra.wavelength * factor, prepared=None)


def crop(spectra: Spectra, low: float, high: float) -> Spectra:
    """The pixel columns in which any spectrum has a wavelength from `low` to `high` Angstrom (none masked).

    Raises:
      DataError: fewer than two such columns.
    """
    inside = (spectra.wavelength >= low) & (spectra.wavelength <= high)
    columns = np.flatnonzero(np.atleast_2d(inside).any(axis=0))
    if columns.size < 2:
        raise DataError(f"no spectrum has pixels from {low:g} to {high:g} A")
    part = slice(columns[0], columns[-1] + 1)
    return replace(
        spectra,
        wavelength=spectra.wavelength[..., part],
        flux=spectra.flux[:, part],
        ivar=spectra.ivar[:, part],
        mask=spectra.mask[:, part],
        prepared=None,
    )


def _apply(
    spectra: Spectra, wavelength: FloatArray | None, operator: Callable[[FloatArray], Operator]
) -> Spectra:
    """Apply the operator that belongs to each grid to the rows on it; `wavelength` None keeps the grids."""
    groups = _rows_by_grid(spectra.wavelength, len(spectra))
    pixels = spectra.flux.shape[1] if wavelength is None else wavelength.size
    flux, ivar = np.zeros((len(spectra), pixels)), np.zeros((len(spectra), pixels))
    mask = np.ones((len(spectra), pixels), dtype=bool)
    valid = spectra.valid
    for grid, rows in groups:
        flux[rows], ivar[rows], mask[rows] = operator(grid).apply(
            spectra.flux[rows], spectra.ivar[rows], valid[rows]
        )
    if not spectra.has_ivar:
        ivar = np.where(mask, 0.0, 1.0)  # still a placeholder, not an uncertainty
    grid = spectra.wavelength if wavelength is None else np.asarray(wavelength, dtype=np.float64)
    return replace(spectra, wavelength=grid, flux=flux, ivar=ivar, mask=mask, prepared=None)


def _rows_by_grid(wavelength: FloatArray, count: int) -> list[tuple[FloatArray, slice | list[int]]]:
    """The distinct grids and the rows on each."""
    if wavelength.ndim == 1:
        return [(wavelength, slice(0, count))]
    rows: dict[bytes, list[int]] = {}
    for row in range(count):
        rows.setdefault(wavelength[row].tobytes(), []).append(row)
    return [(np.frombuffer(grid), members) for grid, members in rows.items()]
