"""Signal-to-noise ratios of spectra, and the choice of the best of several spectra of one star."""

import numpy as np

from specjax.typing import BoolArray, FloatArray, IntArray, StrArray

_ROWS_AT_ONCE = 256  # which stay in a cache


def median_snr(flux: FloatArray, ivar: FloatArray, good: BoolArray) -> FloatArray:
    """Return the (n,) median signal-to-noise ratio of the good pixels of (n, p) flux; NaN without any."""
    result = np.full(len(flux), np.nan)
    for start in range(0, len(flux), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        result[rows] = _medians(flux[rows] * np.sqrt(ivar[rows]), good[rows])
    return result


def _medians(values: FloatArray, good: BoolArray) -> FloatArray:
    """Return the median of the good values of each row (n, p), which are overwritten; NaN without any."""
    good = good & ~np.isnan(values)
    values[~good] = np.inf  # behind all others
    counts = good.sum(axis=1)
    below, above = np.maximum(counts - 1, 0) // 2, counts // 2
    # All rows at once, at the few ranks that occur: faster than to select the good values of each row.
    values.partition(np.unique([below, above]), axis=1)
    rows = np.arange(len(values))
    return np.where(counts > 0, (values[rows, below] + values[rows, above]) / 2, np.nan)


def best_of_each(names: StrArray, snr: FloatArray) -> IntArray:
    """Return the row of the highest S/N for each distinct name, in increasing order.

    A NaN counts as an S/N of zero; of equal rows the first is taken.
    """
    order = np.lexsort((np.arange(len(names)), -np.nan_to_num(snr)))
    _, first = np.unique(names[order], return_index=True)
    return np.sort(order[first])
