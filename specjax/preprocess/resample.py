"""Resampling and smoothing of spectra with masks and inverse variances.

A pixel that is masked or has ivar 0 has no weight; an output pixel without enough support is masked. The
usual libraries, specutils and spectres, let masked pixels through.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from specjax.errors import DataError
from specjax.preprocess import operators
from specjax.preprocess.operators import Operator
from specjax.spectra import Spectra
from specjax.typing import FloatArray, IntArray
from specjax.wavelength import columns_between, widened

SPEED_OF_LIGHT = 299792.458
"""km/s."""

_WORTH_SHARING = 8  # rows; fewer on one grid do not repay an operator of their own
_ROWS_AT_ONCE = 64  # of a few thousand pixels, which fit into the cache of a core
_KERNELS_AT_ONCE = 4  # spectra on their own grids; each has a hundred weights per output pixel
_BESIDE = 3  # pixels next to those in reach, on which the edges of the last of these depend


def rebin(spectra: Spectra, wavelength: FloatArray) -> Spectra:
    """Rebin spectra, conserving flux.

    The flux density of an output pixel is the mean over its overlap with valid pixels.

    Args:
        spectra: n spectra on any grids.
        wavelength: (m,) Angstrom, in the medium of the spectra.

    Returns:
        (n, m) Spectra; an output pixel that valid pixels cover by less than half is masked, with flux 0 and
        ivar 0.
    """
    return _apply(spectra, wavelength, lambda grid: operators.overlap(grid, wavelength), _pixel(wavelength))


def interpolate(spectra: Spectra, wavelength: FloatArray) -> Spectra:
    """Interpolate spectra linearly in log10(wavelength), as the published pipeline does.

    An output pixel is masked outside the spectrum and where either neighbour is masked. Arguments as for
    `rebin`.
    """
    return _apply(spectra, wavelength, lambda grid: operators.linear(grid, wavelength), 0.0)


def smooth(
    spectra: Spectra,
    fwhm_from: float,
    fwhm_to: float | FloatArray,
    wavelength: FloatArray | None = None,
) -> Spectra:
    """Lower the resolution by convolution with a Gaussian, normalised over the valid pixels in its range.

    Args:
        spectra: n spectra of resolution `fwhm_from`.
        fwhm_from: present FWHM of unresolved lines, Angstrom.
        fwhm_to: FWHM after smoothing, Angstrom; one number, or one per output pixel.
        wavelength: (m,) grid of the result, with steps up to about half of `fwhm_to`. None keeps the grids of
            the spectra, and masked pixels stay masked.

    Returns:
        Smoothed Spectra. Their noise is correlated between neighbours, which ivar does not describe.

    Raises:
        DataError: if `fwhm_to` is smaller than `fwhm_from`.
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

    reach = operators.KERNEL_REACH * float(np.max(sigma))
    at_once = _ROWS_AT_ONCE if spectra.wavelength.ndim == 1 else _KERNELS_AT_ONCE
    result = _apply(spectra, wavelength, operator, reach, at_once)
    if wavelength is not None:
        return result
    mask = result.mask | ~spectra.valid
    return result.derive(
        mask=mask, flux=np.where(mask, 0.0, result.flux), ivar=np.where(mask, 0.0, result.ivar)
    )


def crop(spectra: Spectra, low: float, high: float) -> Spectra:
    """Cut spectra to the columns of `wavelength.columns_between`; no pixel is masked.

    Raises:
        DataError: if there are fewer than two such columns.
    """
    part = columns_between(spectra.wavelength, low, high)
    if part.stop - part.start < 2:
        raise DataError(f"no spectrum has pixels from {low:g} to {high:g} A")
    return spectra.derive(
        wavelength=spectra.wavelength[..., part],
        flux=spectra.flux[:, part],
        ivar=spectra.ivar[:, part],
        mask=spectra.mask[:, part],
        prepared=None,
    )


def _apply(
    spectra: Spectra,
    wavelength: FloatArray | None,
    operator: Callable[[FloatArray], Operator],
    reach: float,
    at_once: int = _ROWS_AT_ONCE,
) -> Spectra:
    """Apply to each row the operator for its grid; `wavelength` None keeps the grids.

    The operators use no pixel further than `reach` (Angstrom) beyond `wavelength`.
    """
    pixels = spectra.flux.shape[1] if wavelength is None else wavelength.size
    flux, ivar = np.zeros((len(spectra), pixels)), np.zeros((len(spectra), pixels))
    mask = np.ones((len(spectra), pixels), dtype=bool)
    valid = spectra.valid
    for grid, rows in rows_by_grid(spectra.wavelength, len(spectra), at_once):
        part = slice(None)
        if grid.ndim == 2 and wavelength is not None:  # fewer pixels make smaller operators
            part = columns_between(grid, wavelength[0] - reach, wavelength[-1] + reach)
            part = widened(part, _BESIDE)
        flux[rows], ivar[rows], mask[rows] = operator(grid[..., part]).apply(
            spectra.flux[:, part][rows], spectra.ivar[:, part][rows], valid[:, part][rows]
        )
    if not spectra.has_ivar:
        ivar = np.where(mask, 0.0, 1.0)  # remains a placeholder
    grid = spectra.wavelength if wavelength is None else np.asarray(wavelength, dtype=np.float64)
    return replace(spectra, wavelength=grid, flux=flux, ivar=ivar, mask=mask, prepared=None)


def _pixel(wavelength: FloatArray) -> float:
    """Return the width of the widest pixel of a grid."""
    return float(np.diff(operators.pixel_edges(wavelength)).max())


def rows_by_grid(
    wavelength: FloatArray, count: int, at_once: int
) -> list[tuple[FloatArray, slice | IntArray]]:
    """Divide spectra into batches of up to `at_once` rows, each with its grid and its rows.

    The grid of a batch is (p,) if its rows share it, else (k, p), one for each of k rows. Unless all share
    one grid, only grids of at least `_WORTH_SHARING` rows have batches of their own.
    """
    if wavelength.ndim == 1:
        slices = (slice(start, min(start + at_once, count)) for start in range(0, count, at_once))
        return [(wavelength, rows) for rows in slices]
    batches: list[tuple[FloatArray, slice | IntArray]] = []
    alone = np.ones(count, dtype=bool)
    # Rows that agree in a few pixels are candidates for having the same grid.
    sample = wavelength[:, :: max(1, wavelength.shape[1] // 4)]
    _, group, size = np.unique(sample, axis=0, return_inverse=True, return_counts=True)
    for candidate in np.flatnonzero(size >= _WORTH_SHARING):
        rows = np.flatnonzero(group == candidate)
        grid = wavelength[rows[0]]
        rows = rows[[np.array_equal(wavelength[row], grid) for row in rows]]
        alone[rows] = False
        batches += [(grid, rows[start : start + at_once]) for start in range(0, rows.size, at_once)]
    left = np.flatnonzero(alone)
    for start in range(0, left.size, at_once):
        rows = left[start : start + at_once]
        adjacent = rows[-1] - rows[0] == rows.size - 1
        batch = slice(int(rows[0]), int(rows[-1]) + 1) if adjacent else rows  # a slice copies nothing
        batches.append((wavelength[batch], batch))
    return batches
