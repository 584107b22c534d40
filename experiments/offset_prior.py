"""An offset that depends on metallicity, with a prior from simulated surveys.

The predictions z of a model for a new survey are off by w0 + w1 z + w2 max(-1 - z, 0), a line with a kink at
[Fe/H] = -1. How large such offsets are, and how those of metal-poor stars follow from those of others, is
known from simulated stars that are observed with instruments drawn at random: mean and covariance of their
coefficients are the prior. The labels of the training stars turn it into the posterior (Bayesian linear
regression; the noise maximises the marginal likelihood).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from specjax.typing import FloatArray

KINK = -1.0

NOISES = tuple(np.geomspace(0.05, 0.8, 13))
"""Standard deviations of the noise that are tried, dex."""

_JITTER = 1e-6  # of the covariance, dex^2: a few surveys may not span all directions
_ROBUST = 20  # reweighted fits
_DELTA = 0.3  # dex, as in the robust loss of the adaptation


def design(predicted: FloatArray) -> FloatArray:
    """Return the functions (n, 3) of predictions (n,) that an offset is made of."""
    z = np.asarray(predicted, np.float64)
    return np.stack([np.ones_like(z), z, np.maximum(KINK - z, 0.0)], axis=1)


class OffsetPrior(NamedTuple):
    """A normal distribution of the coefficients of an offset.

    Attributes:
        mean: (3,).
        covariance: (3, 3).
    """

    mean: FloatArray
    covariance: FloatArray

    @classmethod
    def of(cls, surveys: Sequence[tuple[FloatArray, FloatArray]]) -> "OffsetPrior":
        """Fit the offset of each survey, (predictions, labels), and describe their distribution."""
        fits = np.stack([_robust_fit(design(p), y - p) for p, y in surveys])
        covariance = np.cov(fits.T) if len(fits) > 1 else np.zeros((3, 3))
        return cls(fits.mean(axis=0), covariance + _JITTER * np.eye(3))

    def corrected(self, predicted: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
        """Correct predictions.

        Args:
            predicted: (a,) predictions for the training stars.
            labels: (a,) their labels.
            others: (b,) predictions to correct.

        Returns:
            (b,); with no training stars, the mean of the prior is the offset.
        """
        x, residual = design(predicted), labels - predicted
        mean = self._posterior(x, residual, self._noise(x, residual)) if len(labels) else self.mean
        return np.asarray(others + design(others) @ mean)

    def _noise(self, x: FloatArray, residual: FloatArray) -> float:
        """Return the noise that maximises the marginal likelihood.

        Determinant and inverse of the covariance of n residuals are those of a matrix (3, 3) (Woodbury).
        """
        deviation, size = residual - x @ self.mean, len(residual)
        inner, across = x.T @ x, x.T @ deviation

        def minus_evidence(noise: float) -> float:
            precision = np.linalg.inv(self.covariance) + inner / noise**2
            misfit = deviation @ deviation - across @ np.linalg.solve(precision, across) / noise**2
            determinant = np.linalg.slogdet(precision)[1] + 2 * size * np.log(noise)
            return float(determinant + misfit / noise**2)

        return float(min(NOISES, key=minus_evidence))

    def _posterior(self, x: FloatArray, residual: FloatArray, noise: float) -> FloatArray:
        """Return the mean (3,) of the coefficients given the residuals."""
        precision = np.linalg.inv(self.covariance)
        total = precision @ self.mean + x.T @ residual / noise**2
        return np.asarray(np.linalg.solve(precision + x.T @ x / noise**2, total))


def _robust_fit(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return coefficients (3,) of the smallest pseudo-Huber loss, by reweighted least squares."""
    weight = np.ones(len(y))
    for _ in range(_ROBUST):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        weight = 1 / np.sqrt(1 + ((y - x @ found) / _DELTA) ** 2)
    return np.asarray(found)
