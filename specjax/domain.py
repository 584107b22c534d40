"""Whether a spectrum is like those that a model has learnt from, told by the features that its head reads.

A network answers with a number whatever it is shown. The features of the spectra that the heads were trained
on fill a part of their space; how far outside of it a new spectrum lies is its Mahalanobis distance, in units
of the distance that all but few of the training spectra stay below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specjax.errors import ModelError

FloatArray = NDArray[np.float64]

QUANTILE = 0.999
"""Share of the training spectra that lie inside."""

RIDGE = 1e-4
"""Variance added to every direction, relative to the mean one: some hold rounding errors only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """A Gaussian in feature space with a limit.

    Attributes:
        mean: (d,) of the features.
        whitening: (d, d) matrix W with (x - mean) W of unit covariance.
        limit: the Mahalanobis distance that is the edge.
    """

    mean: FloatArray
    whitening: FloatArray
    limit: float

    @classmethod
    def fit(cls, features: ArrayLike, quantile: float = QUANTILE) -> Domain:
        """Fit the domain of features (n, d), of which that share lies inside."""
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False).reshape(x.shape[1], x.shape[1]))
        whitening = vectors / np.sqrt(np.maximum(values, 0.0) + RIDGE * values.mean())
        distance = np.linalg.norm((x - mean) @ whitening, axis=1)
        return cls(mean=mean, whitening=whitening, limit=float(np.quantile(distance, quantile)))

    def distance(self, features: ArrayLike) -> FloatArray:
        """Return how far (n, d) features lie from the centre, (n,): above 1 they are outside."""
        offset = np.asarray(features, np.float64) - self.mean
        return np.asarray(np.linalg.norm(offset @ self.whitening, axis=1) / self.limit)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The domain as arrays that any array file holds."""
        return {
            "mean": self.mean.astype(np.float32),
            "whitening": self.whitening.astype(np.float32),
            "limit": np.asarray(self.limit, np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Domain:
        """The domain that `to_arrays` gave. Raises ModelError if one of its arrays is missing."""
        try:
            mean, whitening = (np.asarray(arrays[key], np.float64) for key in ("mean", "whitening"))
            return cls(mean=mean, whitening=whitening, limit=float(arrays["limit"]))
        except KeyError as error:
            raise ModelError(f"the model's domain has no array {error}") from None
