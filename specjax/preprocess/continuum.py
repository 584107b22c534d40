"""The published continuum of LAMOST spectra, with masked pixels left out of it.

The form and its numbers are those of SpecCLIP's `gaspp_fitcont2` on the blue side, 3700 to 5700 A: a median
filter, then polynomials of degree 5 pushed up to the upper envelope, with the Balmer lines of hot stars
bridged. Three things differ on purpose: masked pixels take no part; ranges are found by wavelength, not by an
index that is only right for spectra which start near 3700 A; and a continuum that is not positive masks the
pixel instead of becoming 1. The published Savitzky-Golay filter (window 3, order 2) is left out: a parabola
through three points is the identity.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.polynomial import chebyshev

from specjax.errors import DataError
from specjax.preprocess.resample import crop
from specjax.spectra import BoolArray, FloatArray, Spectra

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
_ROWS_AT_ONCE = 256


def normalise(spectra: Spectra) -> Spectra:
    """Flux over continuum from 3700 to 5700 A; ivar times the continuum squared.

    Args:
      spectra: n spectra, in vacuum (LAMOST's own medium; air moves the ranges by one pixel), any flux unit.

    Returns:
      Spectra cut to the pixels of 3700 to 5700 A. Masked pixels, and all pixels of a spectrum that could not
      be fitted, have mask True, flux 0 and ivar 0; meta["flag"] says "continuum_failed" for the latter, else
      "".
    """
    # The margin lets the median filter see beyond the range that is fitted.
    try:
        part = crop(spectra, BLUE - 10.0, RED + 10.0)
    except DataError:
        return _nothing(spectra)
    continuum = np.concatenate(
        [
            fit_continuum(block.wavelength, block.flux, block.valid)
            for block in (part[i : i + _ROWS_AT_ONCE] for i in range(0, max(len(part), 1), _ROWS_AT_ONCE))
        ]
    )
    good = part.valid & np.isfinite(continuum)
    ratio = np.divide(part.flux, continuum, out=np.zeros_like(part.flux), where=good)
    ivar = np.where(good, part.ivar * continuum**2, 0.0) if part.has_ivar else good.astype(np.float64)
    failed = ~good.any(axis=1)
    return replace(part, flux=ratio, ivar=ivar, mask=~good).with_meta(
        flag=np.where(failed, "continuum_failed", "").astype("<U32")
    )


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
    grid = np.broadcast_to(wavelength, flux.shape)
    use = valid & (grid >= BLUE) & (grid <= RED)
    enough = (use.sum(axis=1) >= _MIN_PIXELS) & (
        (use * np.gradient(grid, axis=1)).sum(axis=1) >= _MIN_COVERAGE
    )
    scale = _row_median(np.abs(flux), use)
    scale[scale == 0] = 1.0
    level = median_filter(np.where(valid, flux / scale[:, None], 0.0), valid)
    fit = _Polynomial(wavelength, use, enough)
    first = fit(level)
    peak = np.where(use, first, -np.inf).argmax(axis=1)
    hot = np.take_along_axis(grid, peak[:, None], axis=1)[:, 0] < _HOT_PEAK
    level[hot] = _bridge_balmer(grid[hot], level[hot], use[hot])
    for _ in range(_ROUNDS):
        level = np.maximum(fit(level), level)
    continuum = fit(level)
    positive = use & (continuum > 0)
    enough &= positive.sum(axis=1) >= 0.5 * use.sum(axis=1)
    return np.where(positive & enough[:, None], continuum * scale[:, None], np.nan)


def median_filter(flux: FloatArray, valid: BoolArray, pixels: int = _MEDIAN_PIXELS) -> FloatArray:
    """Running median of (n, p) flux over the valid pixels of a window; 0 where the window has none."""
    half = pixels // 2
    padded = np.pad(np.where(valid, flux, np.nan), ((0, 0), (half, half)), constant_values=np.nan)
    window = np.lib.stride_tricks.sliding_window_view(padded, pixels, axis=1)
    ordered = np.sort(window, axis=2)  # NaN go last
    count = np.isfinite(ordered).sum(axis=2)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0)[..., None] // 2, axis=2)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, pixels - 1)[..., None], axis=2)[..., 0]
    return np.where(count > 0, 0.5 * (low + high), 0.0)


class _Polynomial:
    """Least squares of degree 5 for many rows over fixed pixels: the normal equations are built once."""

    def __init__(self, wavelength: FloatArray, use: BoolArray, enough: BoolArray) -> None:
        position = (2.0 * np.atleast_2d(wavelength) - (BLUE + RED)) / (RED - BLUE)
        self.basis = chebyshev.chebvander(np.clip(position, -1.1, 1.1), _DEGREE)  # (1 or n, p, 6)
        self.weight = use.astype(np.float64)
        normal = np.matmul((self.weight[:, :, None] * self.basis).swapaxes(1, 2), self.basis)  # (n, 6, 6)
        normal[~enough] = np.eye(_DEGREE + 1)
        self.inverse = np.linalg.inv(normal)

    def __call__(self, flux: FloatArray) -> FloatArray:
        moments = np.matmul((self.weight * flux)[:, None, :], self.basis)  # (n, 1, 6)
        coefficients = np.matmul(moments, self.inverse)
        return np.matmul(self.basis, coefficients.swapaxes(1, 2))[:, :, 0]


def _bridge_balmer(grid: FloatArray, flux: FloatArray, use: BoolArray) -> FloatArray:
    """Flux with each Balmer range replaced by a line between the maxima within 10 A of its two ends."""
    flux = flux.copy()
    for low, high in BALMER:
        left, has_left = _highest(grid, flux, use, low)
        right, has_right = _highest(grid, flux, use, high)
        x0, y0 = _at(grid, left), _at(flux, left)
        x1, y1 = _at(grid, right), _at(flux, right)
        line = y0 + (grid - x0) * (y1 - y0) / np.where(x1 > x0, x1 - x0, 1.0)
        between = (grid >= x0) & (grid <= x1) & (has_left & has_right)[:, None]
        flux = np.where(between, line, flux)
    return flux


def _highest(
    grid: FloatArray, flux: FloatArray, use: BoolArray, centre: float
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) index of the maximum within 10 A of `centre`, and whether there is any usable pixel."""
    near = use & (np.abs(grid - centre) <= _BRIDGE_END)
    return np.where(near, flux, -np.inf).argmax(axis=1), np.asarray(near.any(axis=1))


def _at(array: FloatArray, index: np.ndarray) -> FloatArray:
    return np.take_along_axis(array, index[:, None], axis=1)


def _row_median(values: FloatArray, use: BoolArray) -> FloatArray:
    """(n,) median over the pixels to use, 0 for rows without any."""
    ordered = np.sort(np.where(use, values, np.inf), axis=1)
    count = use.sum(axis=1)
    middle = _at(ordered, np.maximum(count - 1, 0) // 2)[:, 0]
    return np.where(count > 0, middle, 0.0)


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
