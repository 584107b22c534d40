"""Accuracy of predicted labels: robust scatter, R2 and bias, by metallicity range, with errors over seeds.

`robust_sigma`, `r2` and `bias` take NumPy or JAX arrays, traced ones included, so that they can be jitted and
vmapped. `summarise` makes the rows of a table, in NumPy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.typing import BoolArray, FloatArray

Array = Any  # a NumPy or a JAX array; the result is of the same kind

SUBSETS = ("all", "fe_h>=-1", "fe_h<-1")
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
    """
    xp = _namespace(predicted)
    error = xp.sum((predicted - truth) ** 2)
    spread = xp.sum((truth - xp.mean(truth)) ** 2)
    ratio = error / xp.where(spread > 0, spread, 1.0)
    return xp.where(spread > 0, 1.0 - ratio, xp.where(error > 0, -np.inf, np.nan))


def bias(truth: Array, predicted: Array) -> Array:
    """Median of (predicted - truth) in the unit of the label, an offset that `robust_sigma` does not see."""
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
    reference: ArrayLike | None = None,
    stars: ArrayLike | None = None,
    min_stars: int = MIN_STARS,
) -> list[dict[str, Any]]:
    """Score one configuration: one row per subset of `SUBSETS`, with standard errors over seeds.

    If every seed tests at least ``min_stars`` stars of the subset, each seed is scored: the row has the mean
    over the S seeds, the standard deviation ``_std`` (ddof 1) and the error ``_err`` = ``_std`` / sqrt(S).
    Otherwise the predictions of all seeds are pooled and scored once: ``_err`` is the jackknife error over
    seeds, sqrt((S-1)/S sum_k (x_(-k) - mean)^2), and ``_std`` = sqrt(S) ``_err``, as for a mean.

    ``_err`` is the error over splits and initialisations for these stars; it excludes the variance between
    samples of stars. ``sigma_gain`` is the sigma of ``reference`` minus this one, paired by seed.

    Args:
        truth: (seeds, n) literature labels of each seed's test stars.
        predicted: (seeds, n) predictions for them. NaN makes the scores NaN.
        fe_h: (seeds, n) literature [Fe/H], which assigns stars to subsets; equals ``truth`` for that label.
        reference: (seeds, n) predictions of the zero-shot configuration; without it the gain is NaN.
        stars: (seeds, n) integer or string identifiers of the test stars, for ``n_distinct``.
        min_stars: smallest number of stars in a subset for which each seed is scored on its own.

    Returns:
        Rows with subset, pooled (bool), n_seeds, n_stars (mean number of test stars per seed), n_predictions,
        n_distinct, and sigma, r2, bias, sigma_gain, each with _err and _std.

    Raises:
        ValueError: the arrays differ in shape.
    """
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    q = np.full_like(p, np.nan) if reference is None else np.asarray(reference, dtype=np.float64)
    if y.ndim != 2 or not y.shape == p.shape == q.shape == np.shape(fe_h):
        raise ValueError(
            f"truth {y.shape}, predicted {p.shape}, reference {q.shape} and fe_h {np.shape(fe_h)} must have"
            " the same shape (seeds, n)"
        )
    rows = []
    for subset, where in subset_masks(fe_h).items():
        counts = where.sum(axis=1)
        pooled = bool(counts.min() < min_stars)
        row: dict[str, Any] = {
            "subset": subset,
            "pooled": pooled,
            "n_seeds": len(y),
            "n_stars": _whole(float(counts.mean())),
            "n_predictions": int(counts.sum()),
            "n_distinct": None if stars is None else len(np.unique(np.asarray(stars)[where])),
        }
        estimate = _jackknife if pooled else _per_seed
        for name, score in _SCORES.items():
            row[name], row[f"{name}_std"], row[f"{name}_err"] = estimate(score, where, y, p, q)
        rows.append(row)
    return rows


Score = Callable[[FloatArray, FloatArray, FloatArray], float]

_SCORES: dict[str, Score] = {  # functions of truth, predictions and reference predictions
    "sigma": lambda y, p, q: float(robust_sigma(p - y)),
    "r2": lambda y, p, q: float(r2(y, p)) if len(y) > 1 else np.nan,
    "bias": lambda y, p, q: float(bias(y, p)) if len(y) else np.nan,
    "sigma_gain": lambda y, p, q: float(robust_sigma(q - y)) - float(robust_sigma(p - y)),
}


def _per_seed(score: Score, where: BoolArray, *arrays: FloatArray) -> tuple[float, float, float]:
    """Mean over seeds of a score, its standard deviation and standard error."""
    values = [score(*(a[k][where[k]] for a in arrays)) for k in range(len(where))]
    return _over_seeds(np.array(values))


def _jackknife(score: Score, where: BoolArray, *arrays: FloatArray) -> tuple[float, float, float]:
    """Score of the pooled predictions, with spread and error by leaving out one seed at a time."""
    seeds = np.arange(len(where))

    def pooled(rows: BoolArray) -> float:
        return score(*(a[rows][where[rows]] for a in arrays))

    value = pooled(seeds >= 0)
    if len(seeds) < 2:
        return value, np.nan, np.nan
    left_out = np.array([pooled(seeds != k) for k in seeds])
    error = float(np.sqrt((len(seeds) - 1) / len(seeds) * np.sum((left_out - left_out.mean()) ** 2)))
    return value, error * np.sqrt(len(seeds)), error


def _whole(value: float) -> float:
    """Turn a whole number into an int; round others to two decimals."""
    return int(value) if value == int(value) else round(value, 2)


def _over_seeds(values: FloatArray) -> tuple[float, float, float]:
    """Mean, standard deviation (ddof 1) and standard error of the mean; the last two are NaN for one seed."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return float(np.mean(values)), deviation, deviation / np.sqrt(len(values))


def _namespace(array: Array) -> Any:
    """Return `jax.numpy` for JAX arrays and tracers, `numpy` for other values, without importing JAX."""
    return array.__array_namespace__() if hasattr(array, "__array_namespace__") else np
