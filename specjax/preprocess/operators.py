"""Sparse linear operators between wavelength grids, applied to flux with mask and ivar."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from scipy import sparse

from specjax.typing import BoolArray, FloatArray, IntArray

SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
KERNEL_REACH = 4.0  # standard deviations; 6e-5 of the area of the Gaussian lies beyond


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """A linear map from p to m pixels that is applied to valid pixels only.

    Attributes:
        weights: sparse and non-negative: (m, p) for spectra on one grid, or (n m, n p) with a block on the
            diagonal for each of n spectra on their own grids.
        full: (m,) or (n, m) sum of the weights of an output pixel that is fully supported.
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
        if self.full.ndim == 1:
            part = self._columns
            flux, ivar, valid = flux[:, part], ivar[:, part], valid[:, part]
        weights, squares = self._parts
        variance = np.divide(1.0, ivar, out=np.zeros(ivar.shape), where=valid)
        if valid.all():
            support, total = self._total, self._product(weights, flux)
        else:
            use = valid.astype(np.float64)
            support, total = self._product(weights, use), self._product(weights, use * flux)
        noise = self._product(squares, variance)
        good = np.broadcast_to((support > 0) & (support >= self.min_support * self.full), total.shape)
        mean = np.divide(total, support, out=np.zeros_like(total), where=good)
        inverse = np.divide(support**2, noise, out=np.zeros_like(noise), where=good)
        return mean, inverse, ~good

    def _product(self, matrix: sparse.csr_array, rows: FloatArray) -> FloatArray:
        """Apply a matrix to each row of (n, p), giving (n, m)."""
        if self.full.ndim == 2:
            return np.reshape(matrix @ rows.ravel(), self.full.shape)
        return np.ascontiguousarray((matrix @ np.ascontiguousarray(rows.T)).T)

    @cached_property
    def _columns(self) -> slice:
        """Input pixels of a shared grid from the first to the last with nonzero weight."""
        used = self.weights.indices
        return slice(int(used.min()), int(used.max()) + 1) if used.size else slice(0, 0)

    @cached_property
    def _parts(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Weights of those pixels, and their squares."""
        weights = self.weights if self.full.ndim == 2 else self.weights[:, self._columns]
        squares = sparse.csr_array((weights.data**2, weights.indices, weights.indptr), shape=weights.shape)
        return weights, squares

    @cached_property
    def _total(self) -> FloatArray:
        """Support of the output pixels, shaped like `full`, where every input pixel is valid."""
        return np.reshape(self.weights.sum(axis=1), self.full.shape)


def pixel_edges(grid: FloatArray) -> FloatArray:
    """Return edges (..., p + 1) of (..., p) pixels halfway between them; the outer pixels are symmetric."""
    edges = np.empty((*grid.shape[:-1], grid.shape[-1] + 1))
    edges[..., 1:-1] = 0.5 * (grid[..., 1:] + grid[..., :-1])
    edges[..., 0] = 2 * grid[..., 0] - edges[..., 1]
    edges[..., -1] = 2 * grid[..., -1] - edges[..., -2]
    return edges


def overlap(source: FloatArray, target: FloatArray, min_support: float = 0.5) -> Operator:
    """Return the operator of flux-conserving rebinning, whose weights are pixel overlaps in Angstrom.

    `source` is the grid (p,) of all spectra, or has the grid of each of n spectra, (n, p); likewise below.
    """
    return _build(_overlap, source, target, min_support)


def gaussian(source: FloatArray, target: FloatArray, sigma: FloatArray, min_support: float = 0.5) -> Operator:
    """Return the operator of Gaussian smoothing with `sigma` (m,), Angstrom, at each target wavelength.

    `target` is (m,), or (n, m) like `source`.
    """
    return _build(_gaussian, source, target, sigma, min_support)


def linear(source: FloatArray, target: FloatArray) -> Operator:
    """Return the operator of linear interpolation in log10(wavelength); it needs every weighted pixel."""
    return _build(_linear, source, target)


def _build(make: Callable[..., Operator], source: FloatArray, *arguments: FloatArray | float) -> Operator:
    """Make the operator; that of a shared grid is cached."""
    if source.ndim == 2:
        return make(source, *arguments)
    packed = tuple(a.tobytes() if isinstance(a, np.ndarray) else a for a in arguments)
    return _cached(make, source.tobytes(), *packed)


# Cached by the bytes of the grids: the spectra of a survey share one grid or a few.
@lru_cache(maxsize=64)
def _cached(make: Callable[..., Operator], source: bytes, *arguments: bytes | float) -> Operator:
    unpacked = (np.frombuffer(a) if isinstance(a, bytes) else a for a in arguments)
    operator = make(np.frombuffer(source)[None], *unpacked)
    operator.weights.eliminate_zeros()
    return replace(operator, full=operator.full[0])


def _overlap(source: FloatArray, target: FloatArray, min_support: float) -> Operator:
    count, pixels, size = *source.shape, target.size
    edges, bounds = pixel_edges(source), pixel_edges(target)  # (n, p + 1), (m + 1,)
    below = np.searchsorted(bounds, edges.ravel(), side="right").reshape(edges.shape)
    # The bounds cut each input pixel into pieces. From one piece to the next either the input pixel or the
    # output pixel advances by one.
    pieces = np.diff(below) + 1  # (n, p)
    before = np.concatenate([[0], np.cumsum(pieces.sum(axis=1))])  # pieces of earlier spectra
    pixel = np.repeat(np.arange(source.size), pieces.ravel())
    first = below[:, 0] - 1 - before[:-1] + pixels * np.arange(count)
    output = np.arange(pixel.size) - pixel + np.repeat(first, np.diff(before))
    beyond = (output < 0) | (output >= size)
    output = np.clip(output, 0, size - 1)
    low, high = edges[:, :-1].ravel()[pixel], edges[:, 1:].ravel()[pixel]
    width = np.minimum(high, bounds[output + 1]) - np.maximum(low, bounds[output])
    width[beyond] = 0.0
    row = output + np.repeat(size * np.arange(count), np.diff(before))
    weights = _matrix(width, row, pixel, (count * size, source.size))
    return Operator(weights=weights, full=np.tile(np.diff(bounds), (count, 1)), min_support=min_support)


def _gaussian(source: FloatArray, target: FloatArray, sigma: FloatArray, min_support: float) -> Operator:
    edges, count = pixel_edges(source), len(source)
    centres = np.broadcast_to(target, (count, target.shape[-1]))
    inside = (centres >= edges[:, :1]) & (centres <= edges[:, -1:])
    low = _search(source, centres - KERNEL_REACH * sigma)
    high = np.where(inside, _search(source, centres + KERNEL_REACH * sigma), low)
    # A kernel narrow enough to fall between two pixels gets the one that contains its centre.
    alone = inside & (high == low)
    low = np.where(alone, np.clip(_search(edges, centres) - 1, 0, source.shape[1] - 1), low)
    high = np.where(alone, low + 1, high)
    start = low + np.arange(count)[:, None] * source.shape[1]
    row, column = _ranges(start.ravel(), (high - low).ravel())
    widths = np.broadcast_to(sigma, centres.shape).ravel()
    offset = np.where(alone.ravel()[row], 0.0, (source.ravel()[column] - centres.ravel()[row]) / widths[row])
    value = np.exp(-0.5 * offset**2) * np.diff(edges).ravel()[column]
    weights = _matrix(value, row, column, (centres.size, source.size))
    return Operator(
        weights=weights, full=np.reshape(weights.sum(axis=1), centres.shape), min_support=min_support
    )


def _linear(source: FloatArray, target: FloatArray) -> Operator:
    grid = np.log10(source)
    points = np.broadcast_to(np.log10(target), (len(grid), target.size))
    inside = (points >= grid[:, :1]) & (points <= grid[:, -1:])
    left = np.clip(_search(grid, points, side="right") - 1, 0, grid.shape[1] - 2)
    left = (left + np.arange(len(grid))[:, None] * grid.shape[1])[inside]
    row, point = np.flatnonzero(inside), points[inside]
    below, above = grid.ravel()[left], grid.ravel()[left + 1]
    share = (point - below) / (above - below)
    share[share < 1e-9] = 0.0  # a point on a pixel needs only that pixel
    share[share > 1 - 1e-9] = 1.0
    weights = _matrix(
        np.stack([1 - share, share], axis=1).ravel(),
        np.repeat(row, 2),
        np.stack([left, left + 1], axis=1).ravel(),
        (inside.size, source.size),
    )
    # The two weights sum to one up to rounding, which must not mask a pixel.
    return Operator(weights=weights, full=np.ones(inside.shape), min_support=1 - 1e-9)


def _search(grids: FloatArray, values: FloatArray, side: Literal["left", "right"] = "left") -> IntArray:
    """Return (n, m) positions of (n, m) values in the rows of (n, p) grids."""
    return np.stack([np.searchsorted(grid, row, side) for grid, row in zip(grids, values, strict=True)])


def _ranges(start: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
    """Return i and start[i], start[i] + 1, ... of count[i] numbers for each i, both concatenated."""
    which = np.repeat(np.arange(start.size), count)
    return which, np.arange(which.size) + np.repeat(start - np.cumsum(count) + count, count)


def _matrix(values: FloatArray, row: IntArray, column: IntArray, shape: tuple[int, int]) -> sparse.csr_array:
    """Return the matrix of values that are in order of rows."""
    pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=shape[0]))])
    short = np.int32 if max(*shape, values.size) < 2**31 else np.int64  # as scipy would convert them
    return sparse.csr_array((values, column.astype(short), pointer.astype(short)), shape=shape)
