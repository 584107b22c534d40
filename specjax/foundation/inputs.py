"""What may come in from a user: arrays of the right shape, finite where unmasked, of order 1."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.config import ModelConfig
from specjax.errors import DataError
from specjax.typing import AnyArray, BoolArray, FloatArray

# Beyond these the squares of the standardisation leave the range of float32.
_SMALLEST, _LARGEST = 1e-15, 1e15


def pixel_count(config: ModelConfig, survey: str) -> int:
    """Return the number of pixels of the model grid of "lamost" or "gaia_xp"."""
    if survey == "lamost":
        return config.specformer.num_pixels
    return (config.xp_transformer or config.xp_autoencoder).num_pixels


def as_array(values: ArrayLike, name: str, dtype: Any, pixels: int, rows: int | None = None) -> AnyArray:
    """Return an array (rows, pixels), rows being any number from 1 where it is None.

    Raises:
        DataError: not numbers, or another shape.
    """
    try:
        array = np.asarray(values)
        array = array.astype(dtype, casting="unsafe" if dtype is np.bool_ else "same_kind")
    except (TypeError, ValueError):
        raise DataError(f"{name} must be a rectangular array of real numbers") from None
    wanted = (array.shape[0] if array.ndim == 2 and rows is None else rows, pixels)
    if array.shape != wanted or not array.size:
        shown = "n" if rows is None else rows
        raise DataError(f"{name} must have the shape ({shown}, {pixels}), not {array.shape}")
    return array


def check_values(flux: FloatArray, masked: BoolArray) -> None:
    """Refuse flux (n, pixels) that is not finite, or out of scale, where it is not masked.

    Raises:
        DataError: which row, and why.
    """
    bad = ((~np.isfinite(flux)) & ~masked).any(axis=-1)
    if bad.any():
        raise DataError(
            f"flux has NaN or infinity in {bad.sum()} of {len(flux)} spectra, first in row {bad.argmax()};"
            " mask these pixels"
        )
    largest = np.max(np.abs(flux), axis=-1, where=~masked, initial=0.0)
    wild = (largest > _LARGEST) | ((largest < _SMALLEST) & (largest > 0))
    if wild.any():
        row = wild.argmax()
        raise DataError(f"flux of row {row} reaches {largest[row]:.1e}; it must be normalised, of order 1")
