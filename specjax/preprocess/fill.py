"""Fill masked pixels from principal components of complete spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specjax.errors import DataError
from specjax.typing import BoolArray, FloatArray

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class PrincipalFill:
    """A Gaussian model of spectra: mean + coefficients times components + noise.

    A masked pixel is replaced by the maximum-a-posteriori value under the model given the unmasked pixels,
    i.e. a regression on the components with a ridge by their variances (probabilistic principal components,
    Tipping and Bishop 1999). Filling with the mean spectrum instead biases [Fe/H] by tenths of a dex.

    Attributes:
      mean: (p,).
      components: (k, p), orthonormal rows.
      variance: (k,) of the coefficients over the spectra it was fitted to.
      noise: standard deviation of what the components leave, a pixel.
    """

    mean: FloatArray
    components: FloatArray
    variance: FloatArray
    noise: float

    @classmethod
    def fit(
        cls, flux: FloatArray, mask: BoolArray, k: int = 20, *, rounds: int = 10, tolerance: float = 1e-3
    ) -> PrincipalFill:
        """Fit to (n, p) flux by expectation and maximisation: fill, take components, fill again.

        It starts from the complete spectra where there are enough, else from the mean.

        Args:
          flux: (n, p) normalised flux.
          mask: (n, p), True pixels are not used.
          k: number of components; at most n - 1 and p - 1 are taken.
          rounds: at most so many.
          tolerance: stop when the filled values change by less, root mean square; noise is ten times that.

        Raises:
          DataError: shapes that differ, or fewer than two spectra with valid pixels.
        """
        if flux.shape != mask.shape or flux.ndim != 2:
            raise DataError(f"flux {flux.shape} and mask {mask.shape} must be the same (spectra, pixels)")
        some = ~mask.all(axis=1)
        if some.sum() < 2:
            raise DataError("principal components need at least two spectra with valid pixels")
        flux, mask = np.asarray(flux[some], dtype=np.float64), mask[some]
        model = _start(flux, mask, k)
        filled = model.apply(flux, None, mask)
        for _ in range(rounds if mask.any() else 0):
            model = _components(filled, mask, k)
            update = model.apply(flux, None, mask)
            change = np.sqrt(np.mean((update - filled)[mask] ** 2))
            filled = update
            if change < tolerance:
                break
        return model

    def apply(self, flux: FloatArray, ivar: FloatArray | None, mask: BoolArray) -> FloatArray:
        """(n, p) flux with masked pixels filled; unmasked pixels are returned bit for bit.

        Args:
          flux: (n, p).
          ivar: (n, p) uncertainties of the flux, which soften the fit; None where the source has none.
          mask: (n, p), True pixels are replaced.

        Raises:
          DataError: shapes that do not fit the model.
        """
        if flux.shape != mask.shape or flux.shape[1:] != self.mean.shape:
            raise DataError(f"flux {flux.shape} and mask {mask.shape} do not fit {self.mean.size} pixels")
        result = np.array(flux)
        needed = np.flatnonzero(mask.any(axis=1))
        for start in range(0, needed.size, _ROWS_AT_ONCE):
            rows = needed[start : start + _ROWS_AT_ONCE]
            expected = self._expected(flux[rows], None if ivar is None else ivar[rows], mask[rows])
            result[rows] = np.where(mask[rows], expected, flux[rows])
        return result

    def _expected(self, flux: FloatArray, ivar: FloatArray | None, mask: BoolArray) -> FloatArray:
        """The model's most probable spectrum for each row."""
        k = len(self.components)
        floor = max(self.noise, 1e-6) ** 2  # a perfect fit must not make the equations singular
        precision = np.full(flux.shape, 1.0 / floor)
        if ivar is not None:
            precision = ivar / (1.0 + ivar * floor)  # 1 / (1 / ivar + floor), and 0 for ivar 0
        precision = np.where(mask, 0.0, precision)
        pairs = (self.components[:, None, :] * self.components[None, :, :]).reshape(k * k, -1)
        normal = (precision @ pairs.T).reshape(-1, k, k) + np.diag(1.0 / np.maximum(self.variance, 1e-12))
        residual = np.where(mask, 0.0, flux - self.mean)
        right = (precision * residual) @ self.components.T
        return self.mean + np.linalg.solve(normal, right[:, :, None])[:, :, 0] @ self.components

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The model as arrays that any array file holds."""
        return {
            "mean": self.mean,
            "components": self.components,
            "variance": self.variance,
            "noise": np.asarray(self.noise),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PrincipalFill:
        """The model that `to_arrays` gave. Raises DataError if one of its arrays is missing."""
        try:
            mean, components, variance = (
                np.asarray(arrays[key], dtype=np.float64) for key in ("mean", "components", "variance")
            )
            return cls(mean=mean, components=components, variance=variance, noise=float(arrays["noise"]))
        except KeyError as error:
            raise DataError(f"the fill model has no array {error}") from None


def _start(flux: FloatArray, mask: BoolArray, k: int) -> PrincipalFill:
    """The model of the complete spectra if they are three times the components, else of mean-filled ones."""
    complete = ~mask.any(axis=1)
    if complete.sum() >= 3 * k:
        return _components(flux[complete], mask[complete], k)
    seen = (~mask).sum(axis=0)
    total = np.where(mask, 0.0, flux).sum(axis=0)
    mean = np.divide(total, seen, out=np.ones(seen.shape), where=seen > 0)
    return _components(np.where(mask, mean, flux), mask, k)


def _components(filled: FloatArray, mask: BoolArray, k: int) -> PrincipalFill:
    """Principal components of complete spectra, by the smaller of the two Gram matrices."""
    mean = filled.mean(axis=0)
    centred = filled - mean
    count, pixels = centred.shape
    k = max(1, min(k, count - 1, pixels - 1))
    if count <= pixels:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        size = np.sqrt(np.maximum(values[-k:], 1e-30))
        components = (vectors[:, -k:] / size).T @ centred
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        components = vectors[:, -k:].T
    coefficients = centred @ components.T
    left = (centred - coefficients @ components)[~mask]
    return PrincipalFill(
        mean=mean,
        components=components[::-1].copy(),
        variance=(coefficients**2).mean(axis=0)[::-1].copy(),
        noise=float(np.sqrt(np.mean(left**2))),
    )
