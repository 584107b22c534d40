"""Whether a spectrum is like those that a model has learnt from, told by the features that its head reads.

A network answers with a number whatever it is shown. Two things tell when not to trust it. The features of
the spectra that the heads were trained on fill a part of their space: a new spectrum outside of it, by
Mahalanobis distance, is unlike all of them. And stars just beyond the model's range of labels, of which the
libraries have some, lie in known directions: a linear discriminant for each kind (hotter, cooler) finds
others of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import ModelError
from specjax.typing import FloatArray, StrArray

QUANTILE = 0.999
"""Share of the training spectra that lie inside."""

SIDE_QUANTILE = 0.995
"""Share of the training spectra that lie on the inner side of each discriminant."""

RIDGE = 1e-4
"""Variance added to every direction, relative to the mean one: some hold rounding errors only."""

UNLIKE = "unlike_training"
"""The flag of a spectrum that is unlike all training spectra; beyond a side it is the side's name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """A Gaussian in feature space with a limit, and half-spaces of known kinds of stars outside.

    Attributes:
        mean: (d,) of the features.
        whitening: (d, d) matrix W with (x - mean) W of unit covariance.
        limit: the Mahalanobis distance that is the edge.
        sides: for each kind of stars outside (d,) a direction v; the kind has (x - mean) v > 1.
    """

    mean: FloatArray
    whitening: FloatArray
    limit: float
    sides: Mapping[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def fit(cls, features: ArrayLike, outside: Mapping[str, ArrayLike] | None = None) -> Domain:
        """Fit the domain of features (n, d); `outside` has those (m, d) of known kinds of other spectra.

        Each kind's direction is Fisher's discriminant, S^-1 (mean of the kind - mean) with S the mean of both
        covariances, in units of the score that SIDE_QUANTILE of the features stay below.
        """
        x = np.asarray(features, np.float64)
        mean, covariance = x.mean(axis=0), _covariance(x)
        values, vectors = np.linalg.eigh(covariance)
        whitening = vectors / np.sqrt(np.maximum(values, 0.0) + RIDGE * values.mean())
        distance = np.linalg.norm((x - mean) @ whitening, axis=1)
        sides = {}
        for name, others in (outside or {}).items():
            y = np.asarray(others, np.float64)
            within = 0.5 * (covariance + _covariance(y)) + RIDGE * values.mean() * np.eye(len(mean))
            direction = np.linalg.solve(within, y.mean(axis=0) - mean)
            sides[name] = direction / np.quantile((x - mean) @ direction, SIDE_QUANTILE)
        return cls(mean=mean, whitening=whitening, limit=float(np.quantile(distance, QUANTILE)), sides=sides)

    def distance(self, features: ArrayLike) -> FloatArray:
        """Return how far (n, d) features lie from the centre, (n,): above 1 they are outside."""
        offset = np.asarray(features, np.float64) - self.mean
        return np.asarray(np.linalg.norm(offset @ self.whitening, axis=1) / self.limit)

    def flags(self, features: ArrayLike) -> StrArray:
        """Return for (n, d) features "", the kind of stars that they look like, or UNLIKE."""
        offset = np.asarray(features, np.float64) - self.mean
        flags = np.where(self.distance(features) > 1, UNLIKE, "").astype("<U32")
        for name, direction in self.sides.items():
            flags[offset @ direction > 1] = name
        return flags

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The domain as arrays that any array file holds."""
        return {
            "mean": self.mean.astype(np.float32),
            "whitening": self.whitening.astype(np.float32),
            "limit": np.asarray(self.limit, np.float32),
            **{f"side_{name}": direction.astype(np.float32) for name, direction in self.sides.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Domain:
        """The domain that `to_arrays` gave. Raises ModelError if one of its arrays is missing."""
        sides = {
            key.removeprefix("side_"): np.asarray(value, np.float64)
            for key, value in arrays.items()
            if key.startswith("side_")
        }
        try:
            mean, whitening = (np.asarray(arrays[key], np.float64) for key in ("mean", "whitening"))
            return cls(mean=mean, whitening=whitening, limit=float(arrays["limit"]), sides=sides)
        except KeyError as error:
            raise ModelError(f"the model's domain has no array {error}") from None


def _covariance(x: FloatArray) -> FloatArray:
    return np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])
