"""Signal-to-noise ratios of spectra, and the choice of the best of several spectra of one star."""

import numpy as np

from specjax.typing import BoolArray, FloatArray, IntArray, StrArray


def median_snr(flux: FloatArray, ivar: FloatArray, good: BoolArray) -> FloatArray:
    """Return the (n,) median signal-to-noise ratio of the good pixels of (n, p) flux; NaN without any."""
    snr = np.where(good, flux * np.sqrt(ivar), np.nan)
    result = np.full(len(flux), np.nan)
    some = good.any(axis=1)
    if some.any():
        result[some] = np.nanmedian(snr[some], axis=1)
    return result


def best_of_each(names: StrArray, snr: FloatArray) -> IntArray:
    """Return the row of the highest S/N for each distinct name, in increasing order.

    A NaN counts as an S/N of zero; of equal rows the first is taken.
    """
    order = np.lexsort((np.arange(len(names)), -np.nan_to_num(snr)))
    _, first = np.unique(names[order], return_index=True)
    return np.sort(order[first])
