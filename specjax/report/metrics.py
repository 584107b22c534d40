"""Accuracy of predicted labels: robust scatter, R2 and bias, by metallicity range, with intervals over stars.

`robust_sigma`, `r2` and `bias` take NumPy or JAX arrays, traced ones included, so that they can be jitted and
vmapped. `summarise` makes the rows of a table, in NumPy.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.report import intervals
from specjax.typing import BoolArray, FloatArray, IntArray

Array = Any  # a NumPy or a JAX array; the result is of the same kind

SUBSETS = ("all", "fe_h>=-1", "fe_h<-1")
SCORES = ("sigma", "r2", "bias", "sigma_gain", "r2_gain")
MIN_STARS = 10  # the robust scatter of fewer residuals is dominated by small-number noise


def robust_sigma(residual: Array) -> Array:
    """Biweight scatter of residuals, as the IDL routine ROBUST_SIGMA defines it.

    d = y - median(y); m = median(|d|) / 0.6745, or mean(|d|) / 0.8 if that vanishes; sigma = 0 if both do.
    With u = d / (6 m) and sums over |u| <= 1, sigma = sqrt(n sum(d^2 (1 - u^2)^4) / (D (D - 1))), where
    D = sum((1 - u^2) (1 - 5 u^2)) and n is the number of *all* residuals. `astropy.stats.biweight_scale` has
    u = d / (9 MAD) by default; with c = 6 / 0.6745 it differs only in D^2 in place of D (D - 1).

    Args:
        residual: (n,) array; NumPy arrays are computed in float64, JAX arrays in their own type.

    Returns:
        The scatter in the unit of the residuals, a 0-d array; NaN if any residual is NaN or if n = 0.

    Examples:
        >>> round(float(robust_sigma(np.array([0.1, -0.1, 0.0, 0.2, -0.2, 9.0]))), 2)
        0.19
    """
    xp = _namespace(residual)
    if xp is np:
        residual = np.asarray(residual, dtype=np.float64)
    if residual.shape[0] == 0:
        return xp.asarray(np.nan)
    d = residual - xp.median(residual)
    m = xp.median(abs(d)) / 0.6745
    m = xp.where(m < 1e-20, xp.mean(abs(d)) / 0.8, m)
    u2 = (d / (6.0 * xp.where(m < 1e-20, 1.0, m))) ** 2
    kept = u2 <= 1.0
    numerator = xp.sum(xp.where(kept, d**2 * (1.0 - u2) ** 4, 0.0))
    denominator = xp.sum(xp.where(kept, (1.0 - u2) * (1.0 - 5.0 * u2), 0.0))
    # D > 1 for two or more finite residuals that differ; otherwise the result is 0 (all equal) or NaN.
    product = denominator * (denominator - 1.0)
    sigma = xp.sqrt(residual.shape[0] * numerator / xp.where(product > 0.0, product, np.nan))
    return xp.where(m < 1e-20, 0.0, sigma)


def r2(truth: Array, predicted: Array) -> Array:
    """Coefficient of determination of (n,) predictions: 1 - sum (truth - predicted)^2 / sum (truth - mean)^2.

    If the truth is constant, the result is -inf, or NaN if the predictions are exact.

    Examples:
        >>> float(r2(np.array([-1.0, 0.0, 1.0]), np.array([-1.0, 0.0, 0.0])))
        0.5
    """
    xp = _namespace(predicted)
    error = xp.sum((predicted - truth) ** 2)
    spread = xp.sum((truth - xp.mean(truth)) ** 2)
    ratio = error / xp.where(spread > 0, spread, 1.0)
    return xp.where(spread > 0, 1.0 - ratio, xp.where(error > 0, -np.inf, np.nan))


def bias(truth: Array, predicted: Array) -> Array:
    """Median of (predicted - truth) in the unit of the label; `robust_sigma` does not include it."""
    xp = _namespace(predicted)
    return xp.median(predicted - truth)


def subset_masks(fe_h: ArrayLike) -> dict[str, BoolArray]:
    """Select the stars of each of `SUBSETS` by literature [Fe/H] of any shape; NaN belongs to "all" alone."""
    values = np.asarray(fe_h, dtype=np.float64)
    return {"all": np.ones(values.shape, dtype=bool), "fe_h>=-1": values >= -1.0, "fe_h<-1": values < -1.0}


def summarise(
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    fe_h: ArrayLike,
    stars: ArrayLike,
    reference: ArrayLike | None = None,
    n_train: int | None = None,
    min_stars: int = MIN_STARS,
) -> list[dict[str, Any]]:
    """Score one configuration: one row per subset of `SUBSETS`, with 95% intervals over stars.

    If every seed tests at least ``min_stars`` stars of the subset, the score is the mean over the S seeds,
    and ``_std`` the standard deviation over them (ddof 1). Otherwise the predictions of all seeds are pooled
    and scored once, and ``_std`` is NaN.

    ``_lo`` and ``_hi`` are the ends of `intervals.bootstrap_interval`, and ``_err`` is half its width over
    1.96, the standard error of a normally distributed score. A sample of the distinct stars of the
    subset is applied to all seeds; ``_std`` / sqrt(S) would be too small, because the seeds test the same
    stars. ``sigma_gain`` is the sigma of ``reference`` minus this one, paired by seed and by bootstrap
    sample.

    Args:
        truth: (seeds, n) literature labels of each seed's test stars.
        predicted: (seeds, n) predictions for them. NaN makes the scores NaN.
        fe_h: (seeds, n) literature [Fe/H], which assigns stars to subsets; equals ``truth`` for that label.
        stars: (seeds, n) integer or string identifiers of the test stars.
        reference: (seeds, n) predictions of the zero-shot configuration; without it the gains are NaN.
        n_train: number of training stars of each seed, for the p value of the gain in sigma; None if the
            splits are not drawn independently, as where all seeds share one.
        min_stars: smallest number of stars in a subset for which each seed is scored on its own.

    Returns:
        Rows with subset, pooled (bool), n_seeds, n_stars (mean number of test stars per seed), n_predictions,
        n_distinct; sigma, r2, bias, sigma_gain and r2_gain, each with _lo, _hi, _err and _std; sigma_gain_p,
        the p value of `intervals.corrected_t_test`, NaN for pooled subsets and without ``n_train``.

    Raises:
        ValueError: the arrays differ in shape.
    """
    if reference is None:
        reference = np.full(np.shape(truth), np.nan)
    arrays = [np.asarray(a, dtype=np.float64) for a in (truth, predicted, reference)]
    ids, shape = np.asarray(stars), np.shape(truth)
    shapes = [a.shape for a in (*arrays, np.asarray(fe_h), ids)]
    if len(shape) != 2 or len(set(shapes)) > 1:
        raise ValueError(
            "truth, predicted, reference, fe_h and stars must have the same shape (seeds, n), not "
            + ", ".join(map(str, shapes))
        )
    rows = []
    for subset, where in subset_masks(fe_h).items():
        counts = where.sum(axis=1)
        pooled = bool(counts.min() < min_stars)
        distinct, index = np.unique(ids[where], return_inverse=True)
        row: dict[str, Any] = {
            "subset": subset,
            "pooled": pooled,
            "n_seeds": shape[0],
            "n_stars": _whole(float(counts.mean())),
            "n_predictions": int(counts.sum()),
            "n_distinct": len(distinct),
        }
        y, p, q = (array[where] for array in arrays)
        parts = [slice(None)] if pooled else _slices(counts)
        scores = [_with_gains(_scores(y[i], p[i]), _scores(y[i], q[i])) for i in parts]
        weights = intervals.star_weights(len(distinct))
        drawn = [
            _with_gains(*(_sampled(y[i], values[i], weights[:, index[i]]) for values in (p, q)))
            for i in parts
        ]
        for name in SCORES:
            values = np.array([one[name] for one in scores])
            row[name] = float(values.mean())
            samples = np.mean([one[name] for one in drawn], axis=0)
            low, high = intervals.bootstrap_interval(samples, row[name])
            row |= {f"{name}_lo": low, f"{name}_hi": high, f"{name}_err": (high - low) / 2 / 1.96}
            row[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
        gains, ratio = [one["sigma_gain"] for one in scores], shape[1] / (n_train or np.nan)
        row["sigma_gain_p"] = np.nan if pooled else intervals.corrected_t_test(gains, ratio)[1]
        rows.append(row)
    return rows


def _scores(truth: FloatArray, predicted: FloatArray) -> dict[str, Any]:
    """Scores of (n,) predictions."""
    return {
        "sigma": float(robust_sigma(predicted - truth)),
        "r2": float(r2(truth, predicted)) if len(truth) > 1 else np.nan,
        "bias": float(bias(truth, predicted)) if len(truth) else np.nan,
    }


def _sampled(truth: FloatArray, predicted: FloatArray, weights: IntArray) -> dict[str, Any]:
    """Scores of (n,) predictions for each of (samples, n) bootstrap weights; NaN without predictions."""
    if len(truth) == 0:
        return dict.fromkeys(("sigma", "r2", "bias"), np.full(len(weights), np.nan))
    return {
        "sigma": intervals.weighted_sigma(predicted - truth, weights),
        "r2": intervals.weighted_r2(truth, predicted, weights),
        "bias": intervals.weighted_bias(truth, predicted, weights),
    }


def _with_gains(scores: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Add the gains over the scores of the reference, numbers or arrays."""
    return {
        **scores,
        "sigma_gain": reference["sigma"] - scores["sigma"],
        "r2_gain": scores["r2"] - reference["r2"],
    }


def _slices(counts: IntArray) -> list[slice]:
    """Slices of consecutive runs of the given lengths."""
    ends = np.cumsum(counts).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _whole(value: float) -> float:
    """Turn a whole number into an int; round others to two decimals."""
    return int(value) if value == int(value) else round(value, 2)


def _namespace(array: Array) -> Any:
    """Return `jax.numpy` for JAX arrays and tracers, `numpy` for other values, without importing JAX."""
    return array.__array_namespace__() if hasattr(array, "__array_namespace__") else np
