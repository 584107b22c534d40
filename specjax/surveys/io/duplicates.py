"""Choose one row per star where a table or a survey has several."""

from __future__ import annotations

import numpy as np

from specjax.typing import FloatArray, IntArray, StrArray


def best_of_each(names: StrArray, snr: FloatArray) -> IntArray:
    """Return the row of the highest S/N for each distinct name, in increasing order.

    A NaN counts as an S/N of zero; of equal rows the first is taken.
    """
    order = np.lexsort((np.arange(len(names)), -np.nan_to_num(snr)))
    _, first = np.unique(names[order], return_index=True)
    return np.sort(order[first])
