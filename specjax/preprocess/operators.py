"""Sparse linear operators between wavelength grids, applied to flux with mask and ivar."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import sparse

from specjax.typing import BoolArray, FloatArray

SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
_KERNEL_REACH = 4.0  # standard deviations; 6e-5 of the area of the Gaussian lies beyond
_ROWS_AT_ONCE = 64  # of a few thousand pixels, which fit into the cache of a core


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """A linear map from p to m pixels that is applied to valid pixels only.

    Attributes:
        weights: (m, p) sparse, non-negative.
        full: (m,) sum of the weights of an output pixel that is fully supported.
        min_support: fraction of `full` below which an output pixel is masked.
    """

    weights: sparse.csr_array
    full: FloatArray
    min_support: float

    def apply(
        self, flux: FloatArray, ivar: FloatArray, valid: BoolArray
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Return weighted means over the valid pixels of (n, p) flux, as (n, m) flux, ivar and mask.

        Invalid pixels have no weight. With weights w, flux = sum(w f) / sum(w) and 1/ivar =
        sum(w**2 / ivar) / sum(w)**2, which is exact for independent input pixels; the correlation between
        neighbouring output pixels is not kept. Unsupported output pixels have flux 0, ivar 0 and mask True.
        """
        shape = (len(flux), self.full.size)
        mean, inverse, mask = np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
        for start in range(0, len(flux), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = (rows, self._columns)
            mean[rows], inverse[rows], mask[rows] = self._apply(flux[part], ivar[part], valid[part])
        return mean, inverse, mask

    def _apply(
        self, flux: FloatArray, ivar: FloatArray, valid: BoolArray
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """As `apply`, for arrays cut to `_columns`."""
        weights, squares = self._parts
        variance = np.divide(1.0, ivar, out=np.zeros(ivar.shape), where=valid)
        whole = bool(valid.all())
        support = self._total if whole else _product(weights, valid.astype(np.float64))
        total = _product(weights, flux if whole else np.where(valid, flux, 0.0))
        noise = _product(squares, variance)
        good = (support > 0) & (support >= self.min_support * self.full)
        good = np.broadcast_to(good, total.shape)
        mean = np.divide(total, support, out=np.zeros_like(total), where=good)
        inverse = np.divide(support**2, noise, out=np.zeros_like(noise), where=good)
        return mean, inverse, ~good

    @cached_property
    def _columns(self) -> slice:
        """Input pixels from the first to the last with nonzero weight."""
        used = self.weights.indices
        return slice(int(used.min()), int(used.max()) + 1) if used.size else slice(0, 0)

    @cached_property
    def _parts(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Weights of those pixels, and their squares."""
        weights = self.weights[:, self._columns]
        return weights, weights.power(2)

    @cached_property
    def _total(self) -> FloatArray:
        """(m,) support of the output pixels where every input pixel is valid."""
        return np.asarray(self.weights.sum(axis=1)).ravel()


def _product(matrix: sparse.csr_array, rows: FloatArray) -> FloatArray:
    """Return rows (n, p) times the transpose of matrix (m, p), (n, m)."""
    return np.ascontiguousarray((matrix @ np.ascontiguousarray(rows.T)).T)


def pixel_edges(grid: FloatArray) -> FloatArray:
    """Return (p + 1,) pixel edges halfway between centres; the outer pixels are symmetric."""
    middle = 0.5 * (grid[1:] + grid[:-1])
    return np.concatenate([[2 * grid[0] - middle[0]], middle, [2 * grid[-1] - middle[-1]]])


def overlap(source: FloatArray, target: FloatArray, min_support: float = 0.5) -> Operator:
    """Return the operator of flux-conserving rebinning, whose weights are pixel overlaps in Angstrom."""
    return _overlap(source.tobytes(), target.tobytes(), min_support)


def gaussian(source: FloatArray, target: FloatArray, sigma: FloatArray, min_support: float = 0.5) -> Operator:
    """Return the operator of Gaussian smoothing with `sigma` (m,), Angstrom, at each target wavelength."""
    return _gaussian(source.tobytes(), target.tobytes(), sigma.tobytes(), min_support)


def linear(source: FloatArray, target: FloatArray) -> Operator:
    """Return the operator of linear interpolation in log10(wavelength); it needs every weighted pixel."""
    return _linear(source.tobytes(), target.tobytes())


# Cached by the bytes of the grids: the spectra of a survey share one grid or a few.
@lru_cache(maxsize=64)
def _overlap(source: bytes, target: bytes, min_support: float) -> Operator:
    source_edges, target_edges = pixel_edges(np.frombuffer(source)), pixel_edges(np.frombuffer(target))
    # The edges of both grids cut the axis into pieces that each lie in one pixel of either grid.
    cuts = np.union1d(source_edges, target_edges)
    centre, width = 0.5 * (cuts[1:] + cuts[:-1]), np.diff(cuts)
    column = np.searchsorted(source_edges, centre) - 1
    row = np.searchsorted(target_edges, centre) - 1
    size = (len(target_edges) - 1, len(source_edges) - 1)
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    weights = sparse.csr_array((width[inside], (row[inside], column[inside])), shape=size)
    return Operator(weights=weights, full=np.diff(target_edges), min_support=min_support)


@lru_cache(maxsize=64)
def _gaussian(source: bytes, target: bytes, sigma: bytes, min_support: float) -> Operator:
    grid, centres, widths = np.frombuffer(source), np.frombuffer(target), np.frombuffer(sigma)
    edges = pixel_edges(grid)
    inside = (centres >= edges[0]) & (centres <= edges[-1])
    low = np.searchsorted(grid, centres - _KERNEL_REACH * widths)
    high = np.where(inside, np.searchsorted(grid, centres + _KERNEL_REACH * widths), low)
    # A kernel narrow enough to fall between two pixels gets the one that contains its centre.
    alone = inside & (high == low)
    low = np.where(alone, np.clip(np.searchsorted(edges, centres) - 1, 0, grid.size - 1), low)
    high = np.where(alone, low + 1, high)
    count = high - low
    row = np.repeat(np.arange(centres.size), count)
    column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    offset = np.where(alone[row], 0.0, (grid[column] - centres[row]) / widths[row])
    value = np.exp(-0.5 * offset**2) * np.diff(edges)[column]
    weights = sparse.csr_array((value, (row, column)), shape=(centres.size, grid.size))
    return Operator(weights=weights, full=np.asarray(weights.sum(axis=1)).ravel(), min_support=min_support)


@lru_cache(maxsize=64)
def _linear(source: bytes, target: bytes) -> Operator:
    grid, points = np.log10(np.frombuffer(source)), np.log10(np.frombuffer(target))
    inside = np.flatnonzero((points >= grid[0]) & (points <= grid[-1]))
    left = np.clip(np.searchsorted(grid, points[inside], side="right") - 1, 0, grid.size - 2)
    share = (points[inside] - grid[left]) / (grid[left + 1] - grid[left])
    share[share < 1e-9] = 0.0  # a point on a pixel needs only that pixel
    share[share > 1 - 1e-9] = 1.0
    weights = sparse.csr_array(
        (
            np.concatenate([1 - share, share]),
            (np.tile(inside, 2), np.concatenate([left, left + 1])),
        ),
        shape=(points.size, grid.size),
    )
    # The two weights sum to one up to rounding, which must not mask a pixel.
    return Operator(weights=weights, full=np.ones(points.size), min_support=1 - 1e-9)
