"""Out-of-domain flags: spectra unlike those that a model was trained on.

A network returns a number for any input. Two tests decide when not to trust it, both on the features that the
label head reads. First, a spectrum whose Mahalanobis distance from the training spectra is large is unlike
all of them. Second, stars just outside the model's range of labels, some of which the stellar libraries
contain, lie in known directions: one linear discriminant per kind (hotter, cooler) recognises further stars
of that kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import ModelError
from specjax.flags import FLAG_DTYPE, Flag
from specjax.preprocess.threads import for_each
from specjax.typing import AnyArray, FloatArray, StrArray

QUANTILE = 0.999
"""Fraction of the training spectra within the limiting distance."""

SIDE_QUANTILE = 0.995
"""Fraction of the training spectra on the inner side of each discriminant."""

RIDGE = 1e-4
"""Variance added in every direction, relative to the mean; some directions hold rounding errors only."""

_ROWS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfDomain:
    """A Gaussian in feature space with a limiting distance, and half-spaces of known kinds of stars outside.

    Attributes:
        mean: (d,) mean feature vector.
        whitening: (d, d) matrix W such that (x - mean) W has unit covariance.
        limit: Mahalanobis distance of the edge.
        sides: flag -> (d,) direction v; a spectrum with (x - mean) v > 1 is of that kind.
    """

    mean: FloatArray
    whitening: FloatArray
    limit: float
    sides: Mapping[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def fit(cls, features: ArrayLike, outside: Mapping[str, ArrayLike] | None = None) -> Self:
        """Fit to features (n, d) of training spectra; `outside` has those (m, d) of stars outside.

        The direction of each kind is Fisher's linear discriminant, S^-1 (mean of the kind - mean) with S the
        mean of both covariances, scaled such that the fraction SIDE_QUANTILE of the training spectra score
        below 1.
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
        """Return the distance (n,) of features (n, d) from the training spectra; above 1 they are outside."""
        return self.judge(features)[0]

    def flags(self, features: ArrayLike) -> StrArray:
        """Return a flag (n,) for features (n, d): good, unlike the training spectra, or one of `sides`."""
        return self.judge(features)[1]

    def judge(self, features: ArrayLike) -> tuple[FloatArray, StrArray]:
        """Return `distance` and `flags`."""
        x = np.asarray(features, np.float64)
        distance, flags = np.empty(len(x)), np.empty(len(x), FLAG_DTYPE)

        def judge_rows(rows: slice) -> None:
            offset = x[rows] - self.mean
            distance[rows] = np.linalg.norm(offset @ self.whitening, axis=1) / self.limit
            flag = np.where(distance[rows] > 1, Flag.UNLIKE_TRAINING, Flag.GOOD).astype(FLAG_DTYPE)
            for name, direction in self.sides.items():
                flag[offset @ direction > 1] = name
            flags[rows] = flag

        pieces = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(x), _ROWS_AT_ONCE)]
        for_each(judge_rows, pieces)
        return distance, flags

    def to_arrays(self) -> dict[str, AnyArray]:
        """Return the arrays that `from_arrays` takes, in single precision."""
        return {
            "mean": self.mean.astype(np.float32),
            "whitening": self.whitening.astype(np.float32),
            "limit": np.asarray(self.limit, np.float32),
            **{f"side_{name}": direction.astype(np.float32) for name, direction in self.sides.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> Self:
        """Restore from the output of `to_arrays`.

        Raises:
            ModelError: an array is missing.
        """
        sides = {
            key.removeprefix("side_"): np.asarray(value, np.float64)
            for key, value in arrays.items()
            if key.startswith("side_")
        }
        try:
            mean, whitening = (np.asarray(arrays[key], np.float64) for key in ("mean", "whitening"))
            return cls(mean=mean, whitening=whitening, limit=float(arrays["limit"]), sides=sides)
        except KeyError as error:
            raise ModelError(f"the model's out-of-domain test lacks the array {error}") from None


def _covariance(x: FloatArray) -> FloatArray:
    return np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])
