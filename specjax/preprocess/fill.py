"""Filling of masked pixels by principal components."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from specjax.errors import DataError
from specjax.preprocess.threads import for_each
from specjax.typing import BoolArray, FloatArray, IntArray

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class PrincipalFill:
    """A Gaussian model of spectra: mean + coefficients times components + noise.

    A masked pixel is replaced by its maximum a posteriori value given the unmasked pixels, i.e. by ridge
    regression on the components with their variances as prior (probabilistic principal component analysis,
    Tipping and Bishop 1999). Filling with the mean spectrum instead biases [Fe/H] by tenths of a dex.

    Attributes:
        mean: (p,) mean spectrum.
        components: (k, p), orthonormal rows.
        variance: (k,) variances of the coefficients over the fitted spectra.
        noise: standard deviation of the residuals per pixel.
    """

    mean: FloatArray
    components: FloatArray
    variance: FloatArray
    noise: float

    @classmethod
    def fit(
        cls, flux: FloatArray, mask: BoolArray, k: int = 20, *, rounds: int = 10, tolerance: float = 1e-3
    ) -> "PrincipalFill":
        """Fit the model by expectation maximisation, alternating between filling and principal components.

        The initial model comes from the complete spectra if there are enough, else from mean-filled ones.

        Args:
            flux: (n, p) normalised flux.
            mask: (n, p), True for pixels that are not used.
            k: number of components, limited to n - 1 and p - 1.
            rounds: maximum number of iterations.
            tolerance: root mean square change of the filled values at which iteration stops; a tenth of
                typical noise.

        Raises:
            DataError: if shapes differ, or fewer than two spectra have valid pixels.
        """
        if flux.shape != mask.shape or flux.ndim != 2:
            raise DataError(f"flux {flux.shape} and mask {mask.shape} must be the same (spectra, pixels)")
        some = ~mask.all(axis=1)
        if some.sum() < 2:
            raise DataError("principal components need at least two spectra with valid pixels")
        flux, mask = np.asarray(flux[some], dtype=np.float64), mask[some]
        model = _initial(flux, mask, k)
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
        """Return flux (n, p) with masked pixels filled and unmasked pixels bit-identical.

        Args:
            flux: (n, p).
            ivar: (n, p) inverse variance, by which pixels are weighted; None if there are no uncertainties.
            mask: (n, p), True for pixels that are replaced.

        Raises:
            DataError: if shapes do not fit the model.
        """
        if flux.shape != mask.shape or flux.shape[1:] != self.mean.shape:
            raise DataError(f"flux {flux.shape} and mask {mask.shape} do not fit {self.mean.size} pixels")
        result = np.array(flux)

        def fill(rows: IntArray) -> None:
            part, masked = result[rows], mask[rows]
            expected = self._expected(part, None if ivar is None else ivar[rows], masked)
            np.copyto(part, expected, where=masked, casting="same_kind")
            result[rows] = part

        incomplete = np.flatnonzero(mask.any(axis=1))
        for_each(fill, np.split(incomplete, range(_ROWS_AT_ONCE, incomplete.size, _ROWS_AT_ONCE)))
        return result

    def _expected(self, flux: FloatArray, ivar: FloatArray | None, mask: BoolArray) -> FloatArray:
        """Return the maximum a posteriori spectrum of each row."""
        floor = max(self.noise, 1e-6) ** 2  # keeps the equations regular where the fit is perfect
        if ivar is None:
            precision = np.where(mask, 0.0, 1.0 / floor)
        else:  # 1 / (1 / ivar + floor), and 0 for ivar 0
            precision = np.where(mask, 0.0, ivar / (1.0 + ivar * floor))
        i, j, pairs = self._pairs
        normal = np.empty((len(flux), len(self.components), len(self.components)))
        normal[:, i, j] = normal[:, j, i] = precision @ pairs.T
        normal += np.diag(1.0 / np.maximum(self.variance, 1e-12))
        residual = np.where(mask, 0.0, flux - self.mean)
        right = (precision * residual) @ self.components.T
        return self.mean + np.linalg.solve(normal, right[:, :, None])[:, :, 0] @ self.components

    @cached_property
    def _pairs(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Indices i <= j and the products of components i and j, (k (k + 1) / 2, p).

        They give the upper triangle of the normal equations, which are symmetric.
        """
        i, j = np.triu_indices(len(self.components))
        return i, j, self.components[i] * self.components[j]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the model as a dict of arrays."""
        return {
            "mean": self.mean,
            "components": self.components,
            "variance": self.variance,
            "noise": np.asarray(self.noise),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Build the model from the arrays of `to_arrays`.

        Raises:
            DataError: if an array is missing.
        """
        try:
            mean, components, variance = (
                np.asarray(arrays[key], dtype=np.float64) for key in ("mean", "components", "variance")
            )
            return cls(mean=mean, components=components, variance=variance, noise=float(arrays["noise"]))
        except KeyError as error:
            raise DataError(f"the fill model has no array {error}") from None


def _initial(flux: FloatArray, mask: BoolArray, k: int) -> PrincipalFill:
    """Fit the complete spectra if there are at least 3 k, else mean-filled ones."""
    complete = ~mask.any(axis=1)
    if complete.sum() >= 3 * k:
        return _components(flux[complete], mask[complete], k)
    seen = (~mask).sum(axis=0)
    total = np.where(mask, 0.0, flux).sum(axis=0)
    mean = np.divide(total, seen, out=np.ones(seen.shape), where=seen > 0)
    return _components(np.where(mask, mean, flux), mask, k)


def _components(filled: FloatArray, mask: BoolArray, k: int) -> PrincipalFill:
    """Compute principal components of filled spectra from the smaller of the two Gram matrices."""
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
    residual = (centred - coefficients @ components)[~mask]
    return PrincipalFill(
        mean=mean,
        components=components[::-1].copy(),
        variance=(coefficients**2).mean(axis=0)[::-1].copy(),
        noise=float(np.sqrt(np.mean(residual**2))),
    )
