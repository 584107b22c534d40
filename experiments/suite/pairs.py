"""Scores of pairs of spectra from two surveys: ranks of partners, errors of translations, and a baseline."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from specjax.report import intervals
from specjax.typing import BoolArray, FloatArray, IntArray

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge parameters that cross-validation chooses from, relative to the largest eigenvalue."""

_COMPONENTS = 30
_FOLDS = 5


def partner_ranks(query: ArrayLike, gallery: ArrayLike) -> IntArray:
    """Return the rank (n,) of each query's partner among all of the gallery, 1 if it is the most similar.

    Similarity is the cosine of the angle between vectors. Of equally similar ones, the partner is the last.

    Args:
        query: (n, d) vectors.
        gallery: (m, d) vectors, m >= n; the partner of query k is row k.
    """
    a, b = (_unit(np.asarray(vectors, np.float64)) for vectors in (query, gallery))
    similarity = a @ b.T
    own = np.diagonal(similarity)
    return np.asarray((similarity >= own[:, None]).sum(axis=1))


def nearest_ranks(query: ArrayLike, gallery: ArrayLike, valid: BoolArray) -> IntArray:
    """Return the same as `partner_ranks` by the mean squared difference over the valid samples (m, d)."""
    a, b = np.asarray(query, np.float64), np.where(valid, np.asarray(gallery, np.float64), 0.0)
    # Sums over the valid samples of each row of the gallery, as matrix products.
    squares = (a**2) @ valid.T - 2 * a @ b.T + (b**2).sum(axis=1)
    distance = squares / np.maximum(valid.sum(axis=1), 1)
    own = np.diagonal(distance)
    return np.asarray((distance <= own[:, None]).sum(axis=1))


def share_within(ranks: IntArray, k: int) -> dict[str, float]:
    """Return the share of stars whose partner is among the first k, and the ends of its interval over stars.

    Args:
        ranks: (S, n), or (n,), of the same stars for all seeds.
        k: number of spectra that are looked at.
    """
    return mean_over_stars((np.atleast_2d(ranks) <= k).mean(axis=0))


def mean_over_stars(values: FloatArray) -> dict[str, float]:
    """Return {"": the mean over stars (n,), "_lo" and "_hi": the ends of its 95% interval}."""
    weights = intervals.star_weights(len(values))
    samples = weights @ values / len(values)
    low, high = intervals.bootstrap_interval(samples, float(values.mean()))
    return {"": float(values.mean()), "_lo": low, "_hi": high}


def sample_errors(predicted: ArrayLike, true: ArrayLike, valid: BoolArray) -> FloatArray:
    """Return |predicted/true - 1| (n, p), NaN where a sample is not valid or its flux not positive."""
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    usable = valid & (t > 0)
    return np.where(usable, np.abs(p / np.where(usable, t, 1.0) - 1), np.nan)


def median_errors(errors: FloatArray, axis: int) -> FloatArray:
    """Return the medians of errors (n, p) along an axis, NaN where there is no valid sample."""
    known = np.isfinite(errors).any(axis=axis)
    shape = np.expand_dims(known, axis)
    return np.where(known, np.nanmedian(np.where(shape, errors, 0.0), axis=axis), np.nan)


class Ridge(NamedTuple):
    """A linear map from spectra to spectra, by ridge regression on principal components.

    Attributes:
        mean: (p,) of the input.
        axes: (c, p) principal components of the input.
        coefficients: (1 + c, m), the first for the constant.
    """

    mean: FloatArray
    axes: FloatArray
    coefficients: FloatArray

    @classmethod
    def fit(cls, source: ArrayLike, target: ArrayLike) -> "Ridge":
        """Fit to pairs of spectra (n, p) and (n, m); the ridge is chosen by 5-fold cross-validation."""
        x, y = np.asarray(source, np.float64), np.asarray(target, np.float64)
        mean = x.mean(axis=0)
        _, values, axes = np.linalg.svd(x - mean, full_matrices=False)
        axes = axes[: min(_COMPONENTS, len(x) - 1)]
        scores = (x - mean) @ axes.T
        size = float(values[0] ** 2)
        fold = np.arange(len(x)) % _FOLDS

        def loss(ridge: float) -> float:
            """Return the squared error of stars that are left out."""
            error = 0.0
            for left_out in (fold == k for k in range(_FOLDS)):
                found = _solve(scores[~left_out], y[~left_out], ridge)
                error += float(np.sum((_design(scores[left_out]) @ found - y[left_out]) ** 2))
            return error

        best = min((ridge * size for ridge in RIDGES), key=loss)
        return cls(mean, axes, _solve(scores, y, best))

    def __call__(self, source: ArrayLike) -> FloatArray:
        """Predict spectra (n, m) from spectra (n, p)."""
        scores = (np.asarray(source, np.float64) - self.mean) @ self.axes.T
        return np.asarray(_design(scores) @ self.coefficients)


def _design(scores: FloatArray) -> FloatArray:
    return np.concatenate([np.ones((len(scores), 1)), scores], axis=1)


def _solve(scores: FloatArray, y: FloatArray, ridge: float) -> FloatArray:
    """Return the coefficients (1 + c, m); the constant is not penalised."""
    design = _design(scores)
    penalty = np.diag([0.0, *np.full(scores.shape[1], ridge)])
    return np.asarray(np.linalg.solve(design.T @ design + penalty, design.T @ y))


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
