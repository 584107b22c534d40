"""How good intervals are: coverage, width and the continuous ranked probability score (CRPS)."""

import numpy as np
from scipy import stats

from specjax.calibration.calibration import Intervals
from specjax.typing import BoolArray, FloatArray


def covered(truth: FloatArray, intervals: Intervals) -> tuple[BoolArray, BoolArray]:
    """Return whether the labels lie in their intervals of 68% and of 95%; arrays of any one shape."""
    inner: BoolArray = (truth >= intervals.lo) & (truth <= intervals.hi)
    outer: BoolArray = (truth >= intervals.lo95) & (truth <= intervals.hi95)
    return inner, outer


def normal_crps(truth: FloatArray, mean: FloatArray, sigma: FloatArray) -> FloatArray:
    """Return the CRPS of normal distributions, in the unit of the label; smaller is better.

    sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with z = (truth - mean) / sigma (Gneiting & Raftery
    2007, JASA 102, 359, eq. 21 with the opposite sign). It is the absolute error in the limit sigma = 0.
    """
    z = (truth - mean) / sigma
    inside = z * (2.0 * stats.norm.cdf(z) - 1.0) + 2.0 * stats.norm.pdf(z) - 1.0 / np.sqrt(np.pi)
    result: FloatArray = sigma * inside
    return result
