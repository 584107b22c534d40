"""The published continuum of LAMOST spectra, with masked pixels left out of it.

The form and its numbers are those of SpecCLIP's `gaspp_fitcont2` on the blue side, 3700 to 5700 A: a median
filter, then polynomials of degree 5 pushed up to the upper envelope, with the Balmer lines of hot stars
bridged. Three things differ on purpose: masked pixels take no part; ranges are found by wavelength, not by an
index that is only right for spectra which start at 3700 A; and a continuum that is not positive masks the
pixel instead of becoming 1. The published Savitzky-Golay filter (window 3, order 2) is left out: a parabola
through three points is the identity.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.polynomial import chebyshev
from scipy import ndimage

from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, FloatArray

BLUE, RED = 3700.0, 5700.0
"""The range that is fitted, Angstrom."""

BALMER = ((4030.0, 4160.0), (4270.0, 4410.0), (4800.0, 4940.0))
"""Around H-delta, H-gamma and H-beta: bridged where the continuum peaks below 4500 A."""

_MEDIAN_PIXELS = 7
_DEGREE = 5
_ROUNDS = 10
_HOT_PEAK = 4500.0
_BRIDGE_END = 10.0
_MIN_COVERAGE = 400.0  # Angstrom of valid pixels that hold a polynomial of degree 5 down
_MIN_PIXELS = 50
_ROWS_AT_ONCE = 64  # of 2500 pixels: what is worked on stays in the cache of a core


def normalise(spectra: Spectra) -> Spectra:
    """Flux over continuum from 3700 to 5700 A; ivar times the continuum squared.

    Args:
      spectra: n spectra, in vacuum (LAMOST's own medium; air moves the ranges by one pixel), any flux unit.

    Returns:
      Spectra cut to the pixels of 3700 to 5700 A. Masked pixels, and all pixels of a spectrum that could not
      be fitted, have mask True, flux 0 and ivar 0; meta["flag"] says "continuum_failed" for the latter, else
      "".
    """
    inside = np.atleast_2d((spectra.wavelength >= BLUE) & (spectra.wavelength <= RED)).any(axis=0)
    columns = np.flatnonzero(inside)
    if columns.size < 2:
        return _nothing(spectra)
    # The median filter sees beyond the range that is fitted.
    first, last = max(columns[0] - _MEDIAN_PIXELS // 2, 0), columns[-1] + 1 + _MEDIAN_PIXELS // 2
    near, part = slice(first, last), slice(columns[0], columns[-1] + 1)
    kept = slice(columns[0] - first, columns[-1] + 1 - first)
    shape = (len(spectra), columns[-1] + 1 - columns[0])
    flux, ivar, mask = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    for start in range(0, len(spectra), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        grid = (
            spectra.wavelength[..., near] if spectra.wavelength.ndim == 1 else spectra.wavelength[rows, near]
        )
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
    flag = np.where(mask.all(axis=1), "continuum_failed", "").astype("<U32")
    return replace(
        spectra, wavelength=spectra.wavelength[..., part], flux=flux, ivar=ivar, mask=mask, prepared=None
    ).with_meta(flag=flag)


def fit_continuum(wavelength: FloatArray, flux: FloatArray, valid: BoolArray) -> FloatArray:
    """The continuum of (n, p) flux, NaN where there is none.

    Args:
      wavelength: (p,) or (n, p) Angstrom.
      flux: (n, p).
      valid: (n, p) pixels that may be used.

    Returns:
      (n, p); NaN outside 3700-5700 A, where the fit is not positive, and in whole rows whose valid pixels
      cover less than 400 A or whose fit is not positive over half of them.
    """
    grid = np.atleast_2d(wavelength)
    use = valid & (grid >= BLUE) & (grid <= RED)
    enough = (use.sum(axis=1) >= _MIN_PIXELS) & (
        (use * np.gradient(grid, axis=1)).sum(axis=1) >= _MIN_COVERAGE
    )
    scale = _row_median(np.abs(flux), use)
    scale[scale == 0] = 1.0
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
    """Running median of (n, p) flux over the valid pixels of a window; 0 where the window has none.

    Beyond the first and the last valid pixel of a row the flux counts as 0, as in the published filter; in
    between, pixels that are not valid are left out of the window.
    """
    half = pixels // 2
    inside = np.logical_or.accumulate(valid, axis=1)
    inside &= np.logical_or.accumulate(valid[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(np.where(valid, flux, 0.0), ((0, 0), (half, half)))
    # One line for all rows: the zeros between them are what the filter sees beyond the ends of a row.
    line = ndimage.median_filter(padded.ravel(), size=pixels, mode="constant")
    result = line.reshape(padded.shape)[:, half:-half]
    left_out = np.pad(inside & ~valid, ((0, 0), (half, half)))
    row, column = np.nonzero(ndimage.maximum_filter1d(left_out, pixels, axis=1)[:, half:-half] & inside)
    if row.size:
        at = (row[:, None], column[:, None] + np.arange(pixels))
        result[row, column] = _median(np.where(left_out[at], np.inf, padded[at]), ~left_out[at])
    return np.where(inside, result, 0.0)


class _Polynomial:
    """Least squares of degree 5 for many rows over fixed pixels: the normal equations are built once."""

    def __init__(self, grid: FloatArray, use: BoolArray, enough: BoolArray) -> None:
        position = (2.0 * grid - (BLUE + RED)) / (RED - BLUE)
        basis = chebyshev.chebvander(np.clip(position, -1.1, 1.1), _DEGREE)  # (1 or n, p, 6)
        self.basis = basis[0] if len(basis) == 1 else basis  # a shared grid makes plain matrix products
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
            return coefficients @ self.basis.T
        return np.matmul(self.basis, coefficients[:, :, None])[:, :, 0]

    @staticmethod
    def _moments(flux: FloatArray, basis: AnyArray) -> FloatArray:
        """(n, k) sums over the pixels of (n, p) flux times (p, k) or (n, p, k) basis."""
        return flux @ basis if basis.ndim == 2 else np.matmul(flux[:, None, :], basis)[:, 0]


def _bridge_balmer(grid: FloatArray, flux: FloatArray, use: BoolArray) -> FloatArray:
    """Flux with each Balmer range replaced by a line between its ends.

    The line has at either end the maximum within 10 A of it; a range with an end without usable pixels stays.
    """
    for low, high in BALMER:
        left, right = _highest(grid, flux, use, low), _highest(grid, flux, use, high)
        line = left + (grid - low) / (high - low) * (right - left)
        bridged = (grid >= low) & (grid <= high) & np.isfinite(line)
        flux = np.where(bridged, line, flux)
    return flux


def _highest(grid: FloatArray, flux: FloatArray, use: BoolArray, centre: float) -> FloatArray:
    """(n, 1) maximum within 10 A of `centre`, NaN without usable pixels there."""
    near = use & (np.abs(grid - centre) <= _BRIDGE_END)
    highest = np.where(near, flux, -np.inf).max(axis=1, keepdims=True)
    return np.where(np.isfinite(highest), highest, np.nan)


def _row_median(values: FloatArray, use: BoolArray) -> FloatArray:
    """(n,) lower median over the pixels to use, 0 for rows without any."""
    ordered = np.sort(np.where(use, values, np.inf), axis=1)
    count = use.sum(axis=1)
    middle = ordered[np.arange(len(ordered)), np.maximum(count - 1, 0) // 2]
    return np.where(count > 0, middle, 0.0)


def _median(values: FloatArray, counted: BoolArray) -> FloatArray:
    """(m,) medians of the counted ones of (m, k) values; the others must be inf. 0 where none is counted."""
    ordered, count = np.sort(values, axis=1), counted.sum(axis=1)
    row = np.arange(len(values))
    low, high = (
        ordered[row, np.maximum(count - 1, 0) // 2],
        ordered[row, np.minimum(count // 2, values.shape[1] - 1)],
    )
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, 0.5 * (low + high), 0.0)


def _nothing(spectra: Spectra) -> Spectra:
    """Two masked pixels a spectrum, all flagged: no spectrum reaches the range."""
    count = len(spectra)
    return replace(
        spectra,
        wavelength=np.array([BLUE, RED]),
        flux=np.zeros((count, 2)),
        ivar=np.zeros((count, 2)),
        mask=np.ones((count, 2), dtype=bool),
    ).with_meta(flag=np.full(count, "continuum_failed", dtype="<U32"))
