"""Continuum normalisation of LAMOST spectra as published, with support for masks.

The method and its constants are those of SpecCLIP's `gaspp_fitcont2` for the blue arm, 3700 to 5700 A: a
median filter, then polynomials of degree 5 raised iteratively to the upper envelope, with the Balmer lines of
hot stars bridged. It deliberately differs in three ways: masked pixels are excluded; ranges are found by
wavelength, not by an index that is only right for spectra starting at 3700 A; and where the continuum is not
positive the pixel is masked, instead of setting the continuum to 1. The published Savitzky-Golay filter
(window 3, order 2) is omitted, because a parabola through three points is the identity.
"""

from dataclasses import replace

import numpy as np
from numpy.polynomial import chebyshev
from scipy import ndimage

from specjax.flags import FLAG_DTYPE, Flag
from specjax.preprocess.resample import columns_between
from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, FloatArray

BLUE, RED = 3700.0, 5700.0
"""Limits of the fitted range, Angstrom."""

BALMER = ((4030.0, 4160.0), (4270.0, 4410.0), (4800.0, 4940.0))
"""Ranges around H-delta, H-gamma and H-beta, bridged if the continuum peaks below 4500 A."""

_MEDIAN_PIXELS = 7
_DEGREE = 5
_ROUNDS = 10
_HOT_PEAK = 4500.0  # Angstrom, below which the continuum of hot stars peaks
_BRIDGE_END = 10.0  # Angstrom around the ends of a bridge
_MIN_COVERAGE = 400.0  # Angstrom of valid pixels, below which degree 5 is not constrained
_MIN_PIXELS = 50
_ROWS_AT_ONCE = 64  # of 2500 pixels, which fit into the cache of a core


def normalise(spectra: Spectra) -> Spectra:
    """Divide flux by the continuum from 3700 to 5700 A, and multiply ivar by its square.

    Args:
        spectra: n spectra in vacuum (as LAMOST's are; air shifts the ranges by one pixel), any flux unit.

    Returns:
        Spectra cut to 3700-5700 A. Masked pixels, and all pixels of a spectrum that could not be fitted, have
        mask True, flux 0 and ivar 0. meta["flag"] is CONTINUUM_FAILED for the latter, else GOOD.
    """
    part = columns_between(spectra.wavelength, BLUE, RED)
    if part.stop - part.start < 2:
        return _all_masked(spectra)
    # The median filter reaches beyond the fitted range.
    first, last = max(part.start - _MEDIAN_PIXELS // 2, 0), part.stop + _MEDIAN_PIXELS // 2
    near, kept = slice(first, last), slice(part.start - first, part.stop - first)
    shape = (len(spectra), part.stop - part.start)
    flux, ivar, mask = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    for start in range(0, len(spectra), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        grid = spectra.wavelength[near] if spectra.wavelength.ndim == 1 else spectra.wavelength[rows, near]
        observed = spectra.flux[rows, near]
        valid = ~spectra.mask[rows, near] & (spectra.ivar[rows, near] > 0)
        continuum = fit_continuum(grid, observed, valid)[:, kept]
        good = valid[:, kept] & np.isfinite(continuum)
        np.divide(observed[:, kept], continuum, out=flux[rows], where=good)
        if spectra.has_ivar:
            np.multiply(spectra.ivar[rows, part], continuum**2, out=ivar[rows], where=good)
        else:
            ivar[rows] = good
        mask[rows] = ~good
    flag = np.where(mask.all(axis=1), Flag.CONTINUUM_FAILED, Flag.GOOD).astype(FLAG_DTYPE)
    return replace(
        spectra, wavelength=spectra.wavelength[..., part], flux=flux, ivar=ivar, mask=mask, prepared=None
    ).with_meta(flag=flag)


def fit_continuum(wavelength: FloatArray, flux: FloatArray, valid: BoolArray) -> FloatArray:
    """Fit the continuum of (n, p) flux.

    Args:
        wavelength: (p,) or (n, p) Angstrom.
        flux: (n, p).
        valid: (n, p), True for pixels that may be used.

    Returns:
        (n, p), NaN outside 3700-5700 A and where the fit is not positive. Rows are wholly NaN if their valid
        pixels cover less than 400 A, or if the fit is positive at less than half of them.
    """
    grid = np.atleast_2d(wavelength)
    use = valid & (grid >= BLUE) & (grid <= RED)
    enough = (use.sum(axis=1) >= _MIN_PIXELS) & (
        (use * np.gradient(grid, axis=1)).sum(axis=1) >= _MIN_COVERAGE
    )
    scale = lower_median(np.where(use, np.abs(flux), np.nan))
    scale[~(scale > 0)] = 1.0
    level = median_filter(flux / scale[:, None], valid)
    fit = _Polynomial(grid, use, enough)
    first = fit(level)
    peak = np.where(use, first, -np.inf).argmax(axis=1)
    hot = np.broadcast_to(grid, use.shape)[np.arange(len(use)), peak] < _HOT_PEAK
    level[hot] = _bridge_balmer(grid if len(grid) == 1 else grid[hot], level[hot], use[hot])
    for _ in range(_ROUNDS):
        np.maximum(fit(level), level, out=level)
    continuum = fit(level)
    positive = use & (continuum > 0)
    enough &= positive.sum(axis=1) >= 0.5 * use.sum(axis=1)
    return np.where(positive & enough[:, None], continuum * scale[:, None], np.nan)


def median_filter(flux: FloatArray, valid: BoolArray, pixels: int = _MEDIAN_PIXELS) -> FloatArray:
    """Return the running median of (n, p) flux over the valid pixels of a window; 0 if there are none.

    Beyond the first and the last valid pixel of a row the flux counts as 0, as in the published filter;
    between them, invalid pixels are left out of the window.
    """
    half = pixels // 2
    inside = np.logical_or.accumulate(valid, axis=1)
    inside &= np.logical_or.accumulate(valid[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(np.where(valid, flux, 0.0), ((0, 0), (half, half)))
    # One pass over all rows joined: the zeros between them are the flux beyond the ends of a row.
    line = ndimage.median_filter(padded.ravel(), size=pixels, mode="constant")
    result = line.reshape(padded.shape)[:, half:-half]
    left_out = np.pad(inside & ~valid, ((0, 0), (half, half)))
    row, column = np.nonzero(ndimage.maximum_filter1d(left_out, pixels, axis=1)[:, half:-half] & inside)
    if row.size:
        at = (row[:, None], column[:, None] + np.arange(pixels))
        result[row, column] = _median(np.where(left_out[at], np.inf, padded[at]), ~left_out[at])
    return np.where(inside, result, 0.0)


class _Polynomial:
    """Least-squares polynomials of degree 5 for many rows; the normal equations are inverted only once."""

    def __init__(self, grid: FloatArray, use: BoolArray, enough: BoolArray) -> None:
        position = (2.0 * grid - (BLUE + RED)) / (RED - BLUE)
        basis = chebyshev.chebvander(np.clip(position, -1.1, 1.1), _DEGREE)  # (1 or n, p, 6)
        self.basis = basis[0] if len(basis) == 1 else basis  # with a shared grid, plain matrix products
        self.weight = use.astype(np.float64)
        pairs = np.reshape(basis[..., :, None] * basis[..., None, :], (*basis.shape[:2], -1))
        normal = self._moments(self.weight, pairs[0] if len(pairs) == 1 else pairs)
        normal = normal.reshape(-1, _DEGREE + 1, _DEGREE + 1)
        normal[~enough] = np.eye(_DEGREE + 1)
        self.inverse = np.linalg.inv(normal)

    def __call__(self, flux: FloatArray) -> FloatArray:
        moments = self._moments(self.weight * flux, self.basis)
        coefficients = np.matmul(moments[:, None, :], self.inverse)[:, 0]  # (n, 6)
        if self.basis.ndim == 2:
            return np.asarray(coefficients @ self.basis.T)
        return np.asarray(np.matmul(self.basis, coefficients[:, :, None])[:, :, 0])

    @staticmethod
    def _moments(flux: FloatArray, basis: AnyArray) -> FloatArray:
        """Return (n, k) sums over pixels of (n, p) flux times (p, k) or (n, p, k) basis."""
        return flux @ basis if basis.ndim == 2 else np.matmul(flux[:, None, :], basis)[:, 0]


def _bridge_balmer(grid: FloatArray, flux: FloatArray, use: BoolArray) -> FloatArray:
    """Replace each Balmer range by a straight line between its ends.

    The line takes at either end the maximum within 10 A; a range without usable pixels at one end is kept.
    """
    for low, high in BALMER:
        left, right = _highest(grid, flux, use, low), _highest(grid, flux, use, high)
        line = left + (grid - low) / (high - low) * (right - left)
        bridged = (grid >= low) & (grid <= high) & np.isfinite(line)
        flux = np.where(bridged, line, flux)
    return flux


def _highest(grid: FloatArray, flux: FloatArray, use: BoolArray, centre: float) -> FloatArray:
    """Return the (n, 1) maximum within 10 A of `centre`, NaN without usable pixels there."""
    near = use & (np.abs(grid - centre) <= _BRIDGE_END)
    highest = np.where(near, flux, -np.inf).max(axis=1, keepdims=True)
    return np.where(np.isfinite(highest), highest, np.nan)


def lower_median(values: FloatArray) -> FloatArray:
    """Return the (...) lower median of (..., k) values that are not NaN; NaN if there are none."""
    ordered = np.sort(values, axis=-1)  # NaN come last
    middle = np.maximum(np.isfinite(values).sum(axis=-1) - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0])


def _median(values: FloatArray, counted: BoolArray) -> FloatArray:
    """Return (m,) medians of the counted values of (m, k), 0 if there are none; the others must be inf."""
    ordered, count = np.sort(values, axis=1), counted.sum(axis=1)
    row = np.arange(len(values))
    low, high = (
        ordered[row, np.maximum(count - 1, 0) // 2],
        ordered[row, np.minimum(count // 2, values.shape[1] - 1)],
    )
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, 0.5 * (low + high), 0.0)


def _all_masked(spectra: Spectra) -> Spectra:
    """Return two masked pixels per spectrum, for spectra outside the fitted range."""
    count = len(spectra)
    return replace(
        spectra,
        wavelength=np.array([BLUE, RED]),
        flux=np.zeros((count, 2)),
        ivar=np.zeros((count, 2)),
        mask=np.ones((count, 2), dtype=bool),
    ).with_meta(flag=np.full(count, Flag.CONTINUUM_FAILED, dtype=FLAG_DTYPE))
