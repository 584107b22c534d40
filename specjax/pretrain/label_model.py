"""Where a spectrum goes when the labels of its star change, learnt from the stars of the corpus.

A Gaussian process over label space (Rasmussen & Williams 2006, eq. 2.25), with a kernel of a quadratic trend,
as in The Cannon (Ness et al. 2015), and a local part: the spectrum expected at some labels is a weighted sum
of the stars' spectra, and the weights depend on labels alone. So one set of weights moves a star's spectrum
at any resolution, and its Gaia XP partner too, and what is peculiar to the star stays with it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of the errors that leave-one-out predictions of the corpus' spectra make, at MILES' resolution and at 24 A,
# these have the smallest within 1%; errors change slowly about them.
LENGTH = 1.0  # of the local part, in standardised labels
TREND = 10.0  # variance of the linear trend over that of the local part
NOISE = 0.3  # variance of what is peculiar to a star over that of the local part


class LabelModel(NamedTuple):
    """n stars with standardised labels (n, k), and the inverse (n, n) of their covariance."""

    labels: jax.Array
    inverse: jax.Array

    @classmethod
    def fit(cls, labels: Any) -> "LabelModel":
        """Fit to stars with standardised labels (n, k); inverted in double precision."""
        labels = np.asarray(labels, np.float64)
        covariance = _covariance(labels, labels, np) + NOISE * np.eye(len(labels))
        inverse = np.linalg.inv(covariance)
        return cls(jnp.asarray(labels, jnp.float32), jnp.asarray(inverse, jnp.float32))

    def weights(self, labels: jax.Array) -> jax.Array:
        """Return the stars' weights (b, n) in what is expected at standardised labels (b, k)."""
        return self._weights(_covariance(labels, self.labels, jnp))

    def step(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """Return the change of `weights` (b, n) from labels to labels (b, k).

        Covariances are subtracted first: their products with the inverse are large beside the difference, and
        float32 would leave their rounding in it.
        """
        return self._weights(_covariance(after, self.labels, jnp) - _covariance(before, self.labels, jnp))

    def _weights(self, covariance: jax.Array) -> jax.Array:
        return jnp.matmul(covariance, self.inverse, precision="highest")


def _covariance(first: Any, second: Any, numpy: Any) -> Any:
    squared = ((first[:, None] - second[None]) ** 2).sum(-1)
    linear = 1 + numpy.einsum("ik,jk->ij", first, second)
    return numpy.exp(-0.5 * squared / LENGTH**2) + TREND * linear + linear**2
