"""Intervals over stars: scores under bootstrap weights, and the corrected resampled t test.

A bootstrap sample of stars is a vector of counts, the weights of the stars. All samples are scored at once:
a score with weights w is that of the values in which value k occurs w_k times. The splits of all seeds draw
on the same stars, so that one sample is applied to all seeds, and to both sides of a comparison.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from specjax.typing import FloatArray, IntArray

SAMPLES = 1000  # the ends of the intervals vary by about 4% of their width with the random seed
LEVEL = 0.95


def star_weights(n: int, *, samples: int = SAMPLES, seed: int = 0) -> IntArray:
    """Draw bootstrap samples of n stars; returns (samples, n) counts, each row with the sum n."""
    if n == 0:
        return np.zeros((samples, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=samples)


def weighted_sigma(residual: FloatArray, weights: IntArray) -> FloatArray:
    """Compute `metrics.robust_sigma` for each sample.

    Args:
        residual: (n,) residuals.
        weights: (samples, n) counts.

    Returns:
        (samples,) scatters; NaN for a sample without residuals, or if a residual is NaN.
    """
    order = np.argsort(residual)
    ordered, w = residual[order], weights[:, order]
    total = w.sum(axis=1)
    median = _weighted_median(ordered, w)
    # There are far fewer medians than samples: sort the distances from each once.
    distinct, which = np.unique(median, return_inverse=True)
    distances = np.abs(ordered - distinct[:, None])
    ranks = np.argsort(distances, axis=1)[which]
    d = distances[which]
    mad = _weighted_median(np.take_along_axis(d, ranks, axis=1), np.take_along_axis(w, ranks, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        m = mad / 0.6745
        m = np.where(m < 1e-20, (w * d).sum(axis=1) / total / 0.8, m)
        u2 = (d / (6.0 * np.where(m < 1e-20, 1.0, m))[:, None]) ** 2
        kept = np.where(u2 <= 1.0, w, 0)
        numerator = (kept * d**2 * (1.0 - u2) ** 4).sum(axis=1)
        denominator = (kept * (1.0 - u2) * (1.0 - 5.0 * u2)).sum(axis=1)
        product = denominator * (denominator - 1.0)
        sigma = np.sqrt(total * numerator / np.where(product > 0.0, product, np.nan))
    return np.where(m < 1e-20, 0.0, sigma)


def weighted_r2(truth: FloatArray, predicted: FloatArray, weights: IntArray) -> FloatArray:
    """Compute `metrics.r2` of (n,) labels and predictions for each sample; NaN if the truth is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights @ truth / weights.sum(axis=1)
        spread = (weights * (truth - mean[:, None]) ** 2).sum(axis=1)
        return 1.0 - (weights @ (predicted - truth) ** 2) / np.where(spread > 0.0, spread, np.nan)


def weighted_bias(truth: FloatArray, predicted: FloatArray, weights: IntArray) -> FloatArray:
    """Compute `metrics.bias` of (n,) labels and predictions for each sample."""
    order = np.argsort(predicted - truth)
    return _weighted_median((predicted - truth)[order], weights[:, order])


def bootstrap_interval(samples: FloatArray, estimate: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the bias-corrected percentile interval of Efron (1981, Canadian J. of Statistics 9, 139).

    A robust scatter is smaller in bootstrap samples than in the sample itself, because stars repeat. With z0
    the normal quantile of the fraction of samples below the estimate, the ends are the quantiles Phi(2 z0 -
    z) and Phi(2 z0 + z). Beyond |z0| = z / 2 the correction would leave the bulk of the samples: it stops
    there, and the interval is extended to the estimate if need be.

    Args:
        samples: (samples,) scores; those that are not finite are left out.
        estimate: the score of all stars.
        level: probability content.

    Returns:
        The ends; NaN if the estimate or all scores are not finite.
    """
    finite = samples[np.isfinite(samples)]
    if len(finite) == 0 or not np.isfinite(estimate):
        return np.nan, np.nan
    z = stats.norm.ppf((1.0 + level) / 2.0)
    below = np.mean(finite < estimate) + 0.5 * np.mean(finite == estimate)
    z0 = np.clip(stats.norm.ppf(below), -z / 2.0, z / 2.0)
    low, high = np.quantile(finite, stats.norm.cdf([2.0 * z0 - z, 2.0 * z0 + z]))
    return float(min(low, estimate)), float(max(high, estimate))


def corrected_t_test(differences: ArrayLike, test_to_train: float) -> tuple[float, float]:
    """Test whether the mean difference over repeated random splits is zero.

    The splits share training stars, so that their differences are correlated and std/sqrt(S) is too small.
    Nadeau & Bengio (2003, Machine Learning 52, 239) use the variance (1/S + n_test/n_train) s^2 of the mean.

    Args:
        differences: (S,) differences of a score between two methods, one per split.
        test_to_train: n_test / n_train of the splits.

    Returns:
        t, which has S - 1 degrees of freedom, and the two-sided p value. NaN for fewer than two splits or if
        all differences are equal.
    """
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2 or not x.std() > 0.0:
        return np.nan, np.nan
    t = float(x.mean() / np.sqrt((1.0 / len(x) + test_to_train) * x.var(ddof=1)))
    return t, float(2.0 * stats.t.sf(abs(t), len(x) - 1))


def _weighted_median(ordered: FloatArray, weights: IntArray) -> FloatArray:
    """Median of values in ascending order, (n,) or (samples, n), repeated by (samples, n) counts."""
    cumulative = np.cumsum(weights, axis=1)
    total = cumulative[:, -1:]
    values = np.broadcast_to(ordered, cumulative.shape)
    middle = []
    for rank in ((total - 1) // 2, total // 2):
        place = np.minimum((cumulative <= rank).sum(axis=1, keepdims=True), cumulative.shape[1] - 1)
        middle.append(np.take_along_axis(values, place, axis=1)[:, 0])
    # A NaN among the values makes every median NaN, as for unweighted values.
    median = (middle[0] + middle[1]) / 2.0 + 0.0 * values.sum(axis=1)
    return np.where(total[:, 0] > 0, median, np.nan)
