"""Labels of stars from models of their spectra: least squares on the pixels, with errors of the model.

A generative model, such as `cannon.Cannon` or `payne.Payne`, gives the spectrum expected at given labels. The
labels of a star are those whose expected spectrum fits the observed one best, within a box. The fit can have
several minima and therefore begins at several points.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from scipy.optimize import least_squares

from specjax.spectra import Spectra
from specjax.typing import FloatArray

STARTS = 3
TOLERANCE = 1e-6  # of standardised labels and of the sum of squares, both relative
APART = 0.7  # distance between starting points in at least one standardised label


class Box(NamedTuple):
    """The smallest and largest standardised labels, both (k,), between which labels are fitted."""

    low: FloatArray
    high: FloatArray

    @classmethod
    def around(cls, labels: FloatArray) -> Self:
        """Return the box that holds labels (n, k)."""
        return cls(labels.min(axis=0), labels.max(axis=0))

    def inside(self, labels: FloatArray) -> FloatArray:
        """Move labels (k,) into the interior of the box, where the fit has to start."""
        margin = 1e-6 * (self.high - self.low)
        return np.clip(labels, self.low + margin, self.high - margin)


class Whitening(NamedTuple):
    """A linear map of residuals (p,) after which their expected covariance is the identity.

    With C = S (1 + U d^2 U^T) S, where S is diagonal and U has orthonormal columns, it is
    (1 - U (1 - (1 + d^2)^-1/2) U^T) S^-1; the squared norm of what it returns is r^T C^-1 r.
    """

    precision: FloatArray
    """(p,) inverse standard deviations, the diagonal of S^-1."""
    axes: FloatArray
    """(p, q), U"""
    reduction: FloatArray
    """(q,), 1 - (1 + d^2)^-1/2"""

    @classmethod
    def of(cls, variance: FloatArray, directions: FloatArray) -> Self:
        """Make the map for independent errors of the pixels and errors that many pixels share.

        Args:
            variance: (p,) of the independent errors; inf excludes a pixel.
            directions: (q, p) shared errors of one standard deviation, independent of each other.
        """
        precision = 1 / np.sqrt(variance)
        axes, size, _ = np.linalg.svd((directions * precision).T, full_matrices=False)
        return cls(precision, axes, 1 - 1 / np.sqrt(1 + size**2))

    def __call__(self, residuals: FloatArray) -> FloatArray:
        """Map residuals (..., p)."""
        scaled = residuals * self.precision
        shared: FloatArray = ((scaled @ self.axes) * self.reduction) @ self.axes.T
        return scaled - shared


def pixel_variance(spectra: Spectra) -> FloatArray:
    """Return the noise variance (n, p): 0 for spectra without uncertainties, inf in masked pixels."""
    if not spectra.has_ivar:
        return np.where(spectra.mask, np.inf, 0.0)
    variance: FloatArray = np.full(spectra.flux.shape, np.inf)
    np.divide(1.0, spectra.ivar, out=variance, where=spectra.valid)
    return variance


def starting_points(labels: FloatArray, misfit: FloatArray) -> FloatArray:
    """Select up to `STARTS` of the candidates that fit best and are not neighbours.

    Args:
        labels: (c, k) standardised labels of the candidates.
        misfit: (c,) sums of squared residuals.

    Returns:
        (s, k), the best candidate first.
    """
    chosen: list[FloatArray] = []
    left = np.argsort(misfit, kind="stable")
    while left.size and len(chosen) < STARTS:
        chosen.append(labels[left[0]])
        left = left[np.abs(labels[left] - chosen[-1]).max(axis=1) > APART]
    return np.array(chosen)


def fit_labels(
    residuals: Callable[[FloatArray], FloatArray],
    jacobian: Callable[[FloatArray], FloatArray],
    starts: FloatArray,
    box: Box,
) -> FloatArray:
    """Return the labels (k,) in the box with the smallest sum of squared residuals found.

    Args:
        residuals: labels (k,) -> (m,).
        jacobian: labels (k,) -> (m, k), the derivatives of the residuals.
        starts: (s, k) labels from which to start.
        box: bounds of the labels.
    """
    bounds = (box.low, box.high)
    fits = [
        least_squares(residuals, box.inside(x), jac=jacobian, bounds=bounds, xtol=TOLERANCE, ftol=TOLERANCE)
        for x in starts
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    return np.asarray(best.x, np.float64)
