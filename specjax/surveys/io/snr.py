"""Signal-to-noise ratios of spectra, for surveys that do not provide them."""

from __future__ import annotations

import numpy as np

from specjax.typing import BoolArray, FloatArray


def median_snr(flux: FloatArray, ivar: FloatArray, good: BoolArray) -> FloatArray:
    """Return the (n,) median signal-to-noise ratio of the good pixels of (n, p) flux; NaN without any."""
    snr = np.where(good, flux * np.sqrt(ivar), np.nan)
    result = np.full(len(flux), np.nan)
    some = good.any(axis=1)
    if some.any():
        result[some] = np.nanmedian(snr[some], axis=1)
    return result
