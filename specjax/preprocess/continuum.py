"""Continuum normalisation of LAMOST spectra as published, with support for masks.

The method and its constants are those of SpecCLIP's `gaspp_fitcont2` for the blue arm, 3700 to 5700 A: a
median filter, then polynomials of degree 5 raised iteratively to the upper envelope, with the Balmer lines of
hot stars bridged. It deliberately differs in three ways: masked pixels are excluded; ranges are found by
wavelength, not by an index that is only right for spectra starting at 3700 A; and where the continuum is not
positive the pixel is masked, instead of setting the continuum to 1. The published Savitzky-Golay filter
(window 3, order 2) is omitted, because a parabola through three points is the identity.
"""

from copy import copy
from dataclasses import replace

import numpy as np

from specjax.flags import FLAG_DTYPE, Flag
from specjax.spectra import Spectra
from specjax.typing import BoolArray, FloatArray, IntArray
from specjax.wavelength import columns_between

BLUE, RED = 3700.0, 5700.0
"""Limits of the fitted range, Angstrom."""

BALMER = ((4030.0, 4160.0), (4270.0, 4410.0), (4800.0, 4940.0))
"""Ranges around H-delta, H-gamma and H-beta, bridged if the continuum peaks below 4500 A."""

_HALF = 3  # pixels on either side in the median filter
_MEDIANS_AT_ONCE = 8  # rows
_PADDING = np.zeros(3)
_DEGREE = 5
_ROUNDS = 10
_HOT_PEAK = 4500.0  # Angstrom, below which the continuum of hot stars peaks
_BRIDGE_END = 10.0  # Angstrom around the ends of a bridge
_MIN_COVERAGE = 400.0  # Angstrom of valid pixels, below which degree 5 is not constrained
_MIN_PIXELS = 50
# Rows of 2500 pixels, with six terms for each of them if grids differ, that fit into the cache of a core.
_ROWS_AT_ONCE = 32
_OWN_GRIDS_AT_ONCE = 16


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
    first, last = max(part.start - _HALF, 0), part.stop + _HALF
    near, kept = slice(first, last), slice(part.start - first, part.stop - first)
    shape = (len(spectra), part.stop - part.start)
    flux, ivar, mask = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    at_once = _ROWS_AT_ONCE if spectra.wavelength.ndim == 1 else _OWN_GRIDS_AT_ONCE
    for start in range(0, len(spectra), at_once):
        rows = slice(start, start + at_once)
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
    inside = (grid >= BLUE) & (grid <= RED)
    use = valid & inside
    weight = use.astype(np.float64)
    count = weight.sum(axis=1)
    enough = (count >= _MIN_PIXELS) & ((weight * np.gradient(grid, axis=1)).sum(axis=1) >= _MIN_COVERAGE)
    level = median_filter(flux, valid & _widened(inside))
    fit = _Polynomial(grid, weight, enough)
    envelope = fit(level)
    hot = np.flatnonzero(_peak(grid, envelope, use) < _HOT_PEAK)
    if hot.size:
        bridged = _bridge_balmer(grid if len(grid) == 1 else grid[hot], level[hot], use[hot])
        level[hot], envelope[hot] = bridged, fit[hot](bridged)
    for _ in range(_ROUNDS):
        np.maximum(envelope, level, out=level)
        fit(level, out=envelope)
    positive = use & (envelope > 0)
    enough &= np.count_nonzero(positive, axis=1) >= 0.5 * count
    positive &= enough[:, None]
    envelope[~positive] = np.nan
    return envelope


def median_filter(flux: FloatArray, valid: BoolArray) -> FloatArray:
    """Return the median of (n, p) flux over the valid ones of 7 pixels around each; 0 if there are none.

    Beyond the first and the last valid pixel of a row the flux counts as 0, as in the published filter;
    between them, invalid pixels are left out.
    """
    count, pixels = flux.shape
    width = pixels + 2 * _HALF + pixels % 2  # zeros between the rows are the flux beyond their ends
    inside = _between_first_and_last(valid)
    gaps = inside & ~valid
    result = np.empty(flux.shape)
    padded = np.zeros((min(count, _MEDIANS_AT_ONCE), width))
    for start in range(0, count, _MEDIANS_AT_ONCE):
        rows = slice(start, min(start + _MEDIANS_AT_ONCE, count))
        padded = padded[: rows.stop - start]
        np.multiply(flux[rows], valid[rows], out=padded[:, _HALF : _HALF + pixels])
        left_out = np.flatnonzero(gaps[rows])
        if not left_out.size:
            result[rows] = _medians_of_seven(padded)[:, :pixels]
            continue
        # With k pixels of a window left out, the median of the others is that of all seven if the k count by
        # turns as -inf and inf: for odd k, the lower or the upper middle one, depending on which comes first.
        left_out += left_out // pixels * (width - pixels) + _HALF
        flat = padded.ravel()
        flat[left_out[0::2]], flat[left_out[1::2]] = -np.inf, np.inf
        lower = _medians_of_seven(padded)[:, :pixels]
        flat[left_out[0::2]], flat[left_out[1::2]] = np.inf, -np.inf
        upper = _medians_of_seven(padded)[:, :pixels]
        with np.errstate(invalid="ignore"):  # -inf and inf, where all seven are left out
            np.add(lower, upper, out=lower)
        lower[np.isnan(lower)] = 0.0
        np.multiply(lower, 0.5, out=result[rows])
    result[~inside] = 0.0
    return result


def _between_first_and_last(valid: BoolArray) -> BoolArray:
    """Return (n, p) True from the first to the last valid pixel of each row."""
    column = np.arange(valid.shape[1])
    first = valid.argmax(axis=1)[:, None]
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)[:, None]
    return np.asarray((column >= first) & (column <= last) & valid.any(axis=1, keepdims=True))


def _medians_of_seven(rows: FloatArray) -> FloatArray:
    """Return medians of (n, even p) over each pixel and the six after it; the last six of a row are void.

    Two adjacent windows share six pixels. With the third and the fourth smallest of these, the median of a
    window is its seventh pixel limited to the range between them.
    """
    low, high = np.minimum, np.maximum
    flat = rows.ravel()
    even, odd = np.append(flat[0::2], _PADDING), np.append(flat[1::2], _PADDING)
    small, large = low(odd[:-1], even[1:]), high(odd[:-1], even[1:])  # sorted pairs
    # Four pixels a <= b <= c <= d from two pairs, and the pair e <= f that follows them.
    a, d = low(small[:-1], small[1:]), high(large[:-1], large[1:])
    middle, other = high(small[:-1], small[1:]), low(large[:-1], large[1:])
    b, c = low(middle, other), high(middle, other)
    a, b, c, d, e, f = a[:-1], b[:-1], c[:-1], d[:-1], small[2:], large[2:]
    third = low(low(c, high(b, e)), high(a, f))
    fourth = high(high(b, low(c, f)), low(d, e))
    result = np.empty_like(flat)
    result[0::2] = high(third, low(even[: third.size], fourth))
    result[1::2] = high(third, low(odd[3:], fourth))
    return result.reshape(rows.shape)


class _Polynomial:
    """Least-squares polynomials of degree 5 for many rows; the normal equations are inverted only once."""

    def __init__(self, grid: FloatArray, weight: FloatArray, enough: BoolArray) -> None:
        position = (2.0 * grid - (BLUE + RED)) / (RED - BLUE)
        basis = _chebyshev(np.clip(position, -1.1, 1.1))  # (1 or n, 6, p)
        self.weight, size = weight, _DEGREE + 1
        if len(basis) == 1:  # with a shared grid, plain matrix products
            self.basis = basis[0]
            i, j = np.triu_indices(size)
            normal = np.empty((len(weight), size, size))
            normal[:, i, j] = normal[:, j, i] = weight @ (self.basis[i] * self.basis[j]).T
        else:
            self.basis = basis
            normal = np.matmul(basis * weight[:, None], basis.swapaxes(1, 2))
        normal[~enough] = np.eye(size)
        self.inverse = np.linalg.inv(normal)

    def __call__(self, flux: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """Return the polynomials fitted to (n, p) flux."""
        moments = self._moments(np.multiply(self.weight, flux, out=out), self.basis)
        coefficients = np.matmul(moments[:, None], self.inverse)  # (n, 1, 6)
        if self.basis.ndim == 2:
            return np.matmul(coefficients[:, 0], self.basis, out=out)
        return np.matmul(coefficients, self.basis, out=None if out is None else out[:, None])[:, 0]

    def __getitem__(self, rows: IntArray) -> "_Polynomial":
        """Return the polynomials of some rows."""
        part = copy(self)
        part.weight, part.inverse = self.weight[rows], self.inverse[rows]
        part.basis = self.basis if self.basis.ndim == 2 else self.basis[rows]
        return part

    @staticmethod
    def _moments(flux: FloatArray, basis: FloatArray) -> FloatArray:
        """Return (n, k) sums over pixels of (n, p) flux times (k, p) or (n, k, p) basis."""
        return flux @ basis.T if basis.ndim == 2 else np.matmul(basis, flux[:, :, None])[:, :, 0]


def _chebyshev(position: FloatArray) -> FloatArray:
    """Return (n, 6, p) Chebyshev polynomials at (n, p) positions."""
    basis = np.empty((len(position), _DEGREE + 1, position.shape[1]))
    basis[:, 0], basis[:, 1] = 1.0, position
    double = 2.0 * position
    for term in range(2, _DEGREE + 1):
        np.multiply(double, basis[:, term - 1], out=basis[:, term])
        basis[:, term] -= basis[:, term - 2]
    return basis


def _peak(grid: FloatArray, continuum: FloatArray, use: BoolArray) -> FloatArray:
    """Return (n,) wavelengths at which the continuum of the used pixels is highest."""
    column = np.where(use, continuum, -np.inf).argmax(axis=1)
    return np.asarray(grid[0, column] if len(grid) == 1 else grid[np.arange(len(grid)), column])


def _bridge_balmer(grid: FloatArray, flux: FloatArray, use: BoolArray) -> FloatArray:
    """Replace each Balmer range by a straight line between its ends.

    The line takes at either end the maximum within 10 A; a range without usable pixels at one end is kept.
    """
    for low, high in BALMER:
        part = columns_between(grid, low - _BRIDGE_END, high + _BRIDGE_END)
        near, level = grid[:, part], flux[:, part]
        left, right = (_highest(near, level, use[:, part], end) for end in (low, high))
        line = left + (near - low) / (high - low) * (right - left)
        bridged = (near >= low) & (near <= high) & np.isfinite(line)
        flux[:, part] = np.where(bridged, line, level)
    return flux


def _highest(grid: FloatArray, flux: FloatArray, use: BoolArray, centre: float) -> FloatArray:
    """Return the (n, 1) maximum within 10 A of `centre`, NaN without usable pixels there."""
    near = use & (np.abs(grid - centre) <= _BRIDGE_END)
    highest = np.where(near, flux, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(highest), highest, np.nan)


def _widened(inside: BoolArray) -> BoolArray:
    """Return (n, p) True also for the pixels that the median filter of an inside pixel reaches."""
    wide = inside.copy()
    for step in range(1, _HALF + 1):
        wide[:, step:] |= inside[:, :-step]
        wide[:, :-step] |= inside[:, step:]
    return wide


def lower_median(values: FloatArray) -> FloatArray:
    """Return the (...) lower median of (..., k) values that are not NaN; NaN if there are none."""
    ordered = np.sort(values, axis=-1)  # NaN come last
    finite = np.isfinite(values).astype(np.float32)  # products sum faster than a reduction of a short axis
    count = (finite @ np.ones(values.shape[-1], np.float32)).astype(np.int64)
    middle = np.maximum(count - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0])


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
