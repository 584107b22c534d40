"""A Gaussian process over the labels of stars, for many outputs at once.

All outputs have the same covariance: a Matern kernel with nu = 5/2 and one length per label (Rasmussen &
Williams 2006, eq. 4.17), around a quadratic trend that is fitted first. Without the trend, the weights would
be so large that their float32 rounding exceeded the error of the emulator.
"""

from itertools import combinations_with_replacement
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg, optimize

from specjax.simulate.labels import features
from specjax.typing import AnyArray, Float32Array, FloatArray

NOISE = 3e-5
"""Smallest variance of the noise relative to that of the process, which limits the size of the weights.

With a third of it, spectra left out are predicted better by 2%, but float32 rounds four times as coarsely.
"""

_START = (2.0, 3.0, 3.0, 10.0, 10.0)  # lengths at which the search starts, in standardised labels
_ROUNDS = 40


class Shape(NamedTuple):
    """The covariance: one length (5,) per standardised label, and the variance of the noise."""

    length: FloatArray
    noise: float


class LabelProcess(NamedTuple):
    """A fitted process; a pytree.

    Attributes:
        mean: (5,) of the features of the training stars.
        std: (5,) likewise.
        length: (5,) lengths of the kernel in standardised features.
        stars: (n, 5) standardised features of the training stars.
        trend: (21, k) coefficients of the quadratic trend.
        weights: (n, k) weights of the training stars.
    """

    mean: jax.Array | Float32Array
    std: jax.Array | Float32Array
    length: jax.Array | Float32Array
    stars: jax.Array | Float32Array
    trend: jax.Array | Float32Array
    weights: jax.Array | Float32Array

    def __call__(self, labels: jax.Array | AnyArray) -> jax.Array:
        """Return the expected outputs (b, k) at labels (b, 5); differentiable."""
        standard = self.standardised(labels)
        squared = (((standard[:, None] - self.stars) / self.length) ** 2).sum(axis=-1)
        local = jnp.matmul(_matern(squared, jnp), self.weights, precision="highest")
        return local + jnp.matmul(_quadratic(standard, jnp), self.trend, precision="highest")

    def standardised(self, labels: jax.Array | AnyArray) -> jax.Array:
        """Return the standardised features (b, 5) of labels (b, 5)."""
        standard = (features(jnp.asarray(labels, jnp.float32), jnp) - self.mean) / self.std
        return cast(jax.Array, standard)

    @classmethod
    def fit(cls, labels: FloatArray, outputs: FloatArray, shape: Shape) -> "LabelProcess":
        """Fit outputs (n, k) of stars with labels (n, 5), in double precision."""
        mean, std, standard = _standardised(labels)
        trend, residual = _detrended(standard, outputs)
        covariance = _matern(_squared(standard / shape.length), np) + shape.noise * np.eye(len(labels))
        weights = linalg.solve(covariance, residual, assume_a="pos")
        arrays = (mean, std, shape.length, standard, trend, weights)
        return cls(*(np.asarray(array, np.float32) for array in arrays))


class Components(NamedTuple):
    """Principal components: mean (p,), vectors (c, p) and scores (n, c), which a process predicts."""

    mean: Float32Array
    vectors: Float32Array
    scores: FloatArray

    @classmethod
    def of(cls, rows: FloatArray, count: int) -> "Components":
        """Return the `count` leading components of rows (n, p)."""
        mean = rows.mean(axis=0)
        _, _, vectors = np.linalg.svd(rows - mean, full_matrices=False)
        vectors = vectors[:count]
        return cls(mean.astype(np.float32), vectors.astype(np.float32), (rows - mean) @ vectors.T)


def find_shape(labels: FloatArray, outputs: FloatArray) -> Shape:
    """Find the covariance that maximises the marginal likelihood, with a variance of its own per output.

    Args:
        labels: (n, 5).
        outputs: (n, k); each counts equally.
    """
    _, _, standard = _standardised(labels)
    _, residual = _detrended(standard, outputs)
    residual = residual / residual.std(axis=0)
    start = np.log([*_START, NOISE])
    bounds = [(np.log(0.2), np.log(50.0))] * len(_START) + [(np.log(NOISE), np.log(0.1))]
    found = optimize.minimize(
        _negative_likelihood,
        start,
        args=(standard, residual),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _ROUNDS},
    )
    values = np.exp(found.x)
    return Shape(values[:-1], float(values[-1]))


def _negative_likelihood(
    logarithms: FloatArray, standard: FloatArray, outputs: FloatArray
) -> tuple[float, FloatArray]:
    """Return minus the log likelihood per star and output, and its gradient by the logarithms.

    With K = L L^T, a = K^-1 z and the variance of each output at its best value z a / n, minus twice the
    likelihood is k log|K| + n sum(log(z a)); its derivative is tr((k K^-1 - n sum(a a^T / z a)) dK).
    """
    n, k = outputs.shape
    length, noise = np.exp(logarithms[:-1]), np.exp(logarithms[-1])
    scaled = standard / length
    squared = _squared(scaled)
    covariance = _matern(squared, np) + noise * np.eye(n)
    factor = linalg.cholesky(covariance, lower=True)
    inverse = linalg.cho_solve((factor, True), np.eye(n))
    solved = inverse @ outputs
    power = (outputs * solved).sum(axis=0)
    value = k * 2 * np.log(np.diag(factor)).sum() + n * np.log(power).sum()
    outer = k * inverse - n * (solved / power) @ solved.T
    root = np.sqrt(5 * squared)
    slope = (5 / 3) * (1 + root) * np.exp(-root) * outer
    gradient = [(slope * np.subtract.outer(column, column) ** 2).sum() for column in scaled.T]
    gradient.append(noise * np.trace(outer))
    return value / (2 * n * k), np.array(gradient) / (2 * n * k)


def _standardised(labels: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    values = features(np.asarray(labels, np.float64), np)
    mean, std = values.mean(axis=0), values.std(axis=0)
    return mean, std, (values - mean) / std


def _detrended(standard: FloatArray, outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the coefficients (21, k) of the quadratic trend and what remains of the outputs (n, k)."""
    basis = _quadratic(standard, np)
    trend = np.linalg.lstsq(basis, outputs, rcond=None)[0]
    return trend, outputs - basis @ trend


def _quadratic(standard: Any, numpy: Any) -> Any:
    """Return the products (n, 21) of up to two of the standardised features (n, 5)."""
    pairs = combinations_with_replacement(range(standard.shape[1]), 2)
    products = [standard[:, i] * standard[:, j] for i, j in pairs]
    return numpy.stack([numpy.ones(len(standard)), *standard.T, *products], axis=1)


def _squared(scaled: FloatArray) -> FloatArray:
    """Return the squared distances (n, n) between points (n, 5)."""
    total = np.zeros((len(scaled), len(scaled)))
    for column in scaled.T:
        total += np.subtract.outer(column, column) ** 2
    return total


def _matern(squared: Any, numpy: Any) -> Any:
    # The offset keeps the derivative of the root finite where a star has the labels of a training star.
    root = numpy.sqrt(5 * squared + 1e-12)
    return (1 + root + root**2 / 3) * numpy.exp(-root)
