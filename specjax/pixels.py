"""Arrays of flux, inverse variance and mask, a row per spectrum: types, checks and unusable pixels."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import DataError
from specjax.typing import AnyArray, BoolArray, FloatArray

_HUGE = 1e150  # the square of such a flux overflows
_PIXELS_AT_ONCE = 1 << 16  # half a megabyte per array in double precision


def native(values: ArrayLike, name: str, *, keep_single: bool = False) -> FloatArray:
    """Convert to native float64, or keep float32; masked values of a masked array become NaN."""
    try:
        array = np.ma.asarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        if array.dtype.kind not in ("iufb" if name == "mask" else "iuf"):
            kind = {"b": "true and false", "c": "complex numbers", "U": "text", "S": "text"}
            found = kind.get(array.dtype.kind, "objects")
            raise DataError(f"{name} is not a rectangular array of numbers: it holds {found}")
        single = keep_single and array.dtype == np.float32
        return np.ascontiguousarray(np.ma.filled(array if single else array.astype(np.float64), np.nan))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not a rectangular array of numbers: {error}") from None


def native_mask(mask: ArrayLike) -> BoolArray:
    """Convert any numbers to a new array that is True where they are not zero; masked values are."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and not isinstance(mask, np.ma.MaskedArray):
        return mask.copy()
    return np.asarray(native(mask, "mask") != 0)


def inverse_variance(error: FloatArray) -> FloatArray:
    """Return the inverse variances of standard errors of any shape; 0 where these are not positive."""
    return np.divide(1.0, error**2, out=np.zeros_like(error), where=error > 0)


def row_blocks(array: AnyArray) -> Iterator[slice]:
    """Yield rows of (n, p) arrays that stay in a cache; passes over them are several times as fast."""
    step = max(_PIXELS_AT_ONCE // max(array.shape[1], 1), 1)
    return (slice(start, start + step) for start in range(0, len(array), step))


def ever_used(ivar: FloatArray, mask: BoolArray) -> BoolArray:
    """Return the pixels (p,) that may be used in any of n spectra."""
    used = np.zeros(ivar.shape[1], bool)
    for rows in row_blocks(ivar):
        used |= (~mask[rows] & (ivar[rows] > 0)).any(axis=0)
    return used


def mask_unusable(flux: FloatArray, ivar: FloatArray, mask: BoolArray) -> None:
    """Mask the pixels of (n, p) arrays that `Spectra.build` says, in place; the flux of some becomes zero."""
    zero_runs, known = _zero_runs(flux), np.abs(flux) < _HUGE  # False for NaN
    usable = known & np.isfinite(ivar) & (ivar > 0) & ~zero_runs
    flux[~known] = 0.0
    ivar[~usable] = 0.0
    mask |= ~usable


def _zero_runs(flux: FloatArray, length: int = 3) -> BoolArray:
    """Return (n, p) True in runs of at least `length` pixels of exactly zero flux."""
    zero = flux == 0
    first: BoolArray = zero.copy()  # pixels at which `length` zeros in a row begin
    for step in range(1, length):
        first[:, :-step] &= zero[:, step:]
        first[:, -step:] = False
    run = first.copy()
    for step in range(1, length):
        run[:, step:] |= first[:, :-step]
    return run


def check_pixels(grid: FloatArray, flux: FloatArray, ivar: FloatArray, mask: BoolArray) -> None:
    """Check that the arrays of n spectra on a grid, (p,) or (n, p), fit each other.

    Raises:
        DataError: they do not, or there are fewer than two pixels.
    """
    if flux.ndim != 2:
        raise DataError(f"flux must be (spectra, pixels), not {flux.shape}")
    if grid.shape not in ((flux.shape[1],), flux.shape):
        hint = " (is flux transposed?)" if grid.shape == (flux.shape[0],) else ""
        raise DataError(f"wavelength {grid.shape} does not fit flux {flux.shape}{hint}")
    for name, array in (("ivar", ivar), ("mask", mask)):
        if array.shape != flux.shape:
            raise DataError(f"{name} {array.shape} does not fit flux {flux.shape}")
    if flux.shape[1] < 2:
        raise DataError(f"a spectrum needs at least two pixels; flux is {flux.shape}")


def all_rows(test: Callable[[FloatArray], BoolArray], array: FloatArray) -> bool:
    """Return whether all pixels pass; memory-mapped arrays are only tested once rows are taken from them."""
    if isinstance(array.base, np.memmap):
        return True
    return all(bool(test(array[rows]).all()) for rows in row_blocks(array))


def pad(array: AnyArray, width: int, value: float | bool) -> AnyArray:
    """Return (n, width) arrays, with `value` in the pixels that (n, p) ones do not have."""
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)
