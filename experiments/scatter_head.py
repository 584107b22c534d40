"""A small head that predicts a correction of a label, and the scatter of the label about it.

Both are linear in a few principal components of the frozen features, the scatter in its logarithm, so that
stars whose labels scatter more weigh less (a heteroscedastic head). Residuals have Student's t distribution
with 5 degrees of freedom, as libraries have gross errors of labels, and the coefficients normal priors.
"""

import numpy as np
from scipy.optimize import minimize

from specjax.typing import AnyArray, FloatArray

COMPONENTS = 8
FREEDOM = 5.0
PRIOR_CORRECTION = 0.1
"""Standard deviation of the coefficients of the correction, dex per standard deviation of a component."""

PRIOR_SCATTER = 0.3
"""The same for the logarithm of the scatter."""


def components(features: AnyArray, count: int = COMPONENTS) -> FloatArray:
    """Return the first principal components (n, count) of features (n, d), of unit variance."""
    x = np.asarray(features, np.float64)
    scores, sizes, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    kept = scores[:, : min(count, int((sizes > 1e-9 * sizes[0]).sum()))]
    return np.asarray(kept * np.sqrt(len(x)))


def fit_correction(
    inputs: FloatArray, residual: FloatArray, others: FloatArray, *, own_scatter: bool
) -> tuple[FloatArray, FloatArray]:
    """Fit correction and scatter to training stars, and predict both.

    Args:
        inputs: (a, k) components of the training stars.
        residual: (a,) their labels minus the predictions to correct.
        others: (b, k) components of other stars.
        own_scatter: let the scatter depend on the components; otherwise it is one number.

    Returns:
        The correction (b,) and the scatter (b,).
    """
    x, k = _design(inputs), inputs.shape[1]
    precision = np.concatenate(
        [[0.0], np.full(k, PRIOR_CORRECTION**-2), [0.0], np.full(k, PRIOR_SCATTER**-2)]
    )
    free = np.ones(2 * k + 2)
    if not own_scatter:
        free[k + 2 :] = 0.0

    def loss(p: FloatArray) -> tuple[float, FloatArray]:
        """Return minus the logarithm of the posterior and its gradient."""
        log_scatter = x @ p[k + 1 :]
        z = (residual - x @ p[: k + 1]) * np.exp(-log_scatter)
        pull = (FREEDOM + 1) * z / (FREEDOM + z**2)
        value = log_scatter.sum() + 0.5 * (FREEDOM + 1) * np.log1p(z**2 / FREEDOM).sum()
        slope = np.concatenate([x.T @ (-pull * np.exp(-log_scatter)), x.T @ (1 - z * pull)])
        return float(value + 0.5 * (precision * p**2).sum()), free * (slope + precision * p)

    start = np.zeros(2 * k + 2)
    start[0], start[k + 1] = np.median(residual), np.log(max(residual.std(), 1e-3))
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    design = _design(others)
    return np.asarray(design @ found[: k + 1]), np.asarray(np.exp(design @ found[k + 1 :]))


def _design(inputs: FloatArray) -> FloatArray:
    return np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)
