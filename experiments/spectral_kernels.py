"""Kernels between spectra for the Gaussian-process baselines: filters, principal components and evidence."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from specjax.typing import FloatArray


class Components(NamedTuple):
    """The first k principal components of a set of spectra with p pixels."""

    mean: FloatArray
    """(p,)"""
    axes: FloatArray
    """(k, p) orthonormal"""
    scale: FloatArray
    """(k,) standard deviations along the axes"""


class Kernel(NamedTuple):
    """Squared distances and inner products between two sets of stars, both (m, n)."""

    distance: FloatArray
    product: FloatArray

    @classmethod
    def between(cls, a: FloatArray, b: FloatArray) -> "Kernel":
        """Compute both from features (m, k) and (n, k)."""
        product = a @ b.T
        squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)
        return cls(np.maximum(squares - 2.0 * product, 0.0), product)

    def mix(self, length: float, linear: float, own: "Kernel") -> FloatArray:
        """Return the sum of an RBF and a linear kernel (m, n).

        Args:
            length: squared length scale of the RBF, in units of the median squared distance in ``own``.
            linear: weight of the linear kernel, whose mean diagonal in ``own`` is 1.
            own: the kernel of the training set with itself.
        """
        rbf = np.exp(-0.5 * self.distance / (length * np.median(own.distance)))
        mixed: FloatArray = rbf + linear * self.product * (len(own.product) / np.trace(own.product))
        return mixed


def bandpass(flux: FloatArray, smooth: float, highpass: float) -> FloatArray:
    """Smooth (n, p) spectra with a Gaussian, then divide them by a wider one.

    Args:
        flux: (n, p) spectra.
        smooth: sigma of the narrow Gaussian in pixels; 0 leaves the spectra unsmoothed.
        highpass: sigma of the wide Gaussian in pixels; 0 leaves out the division.
    """
    smoothed = gaussian_filter1d(flux, smooth, axis=1) if smooth else flux
    if not highpass:
        return smoothed
    wide = smoothed
    for _ in range(3):  # three running means of width 2 sigma approximate a Gaussian of that sigma
        wide = uniform_filter1d(wide, round(2 * highpass) + 1, axis=1)
    return smoothed / wide


def principal_components(spectra: FloatArray, number: int) -> Components:
    """Compute the first principal components of (n, p) spectra, at most n - 1."""
    mean = spectra.mean(axis=0)
    centered = spectra - mean
    # From the n x n Gram matrix, the smaller one: hundreds of stars against 1462 pixels.
    values, vectors = np.linalg.eigh(centered @ centered.T)
    order = slice(-1, -min(number, len(spectra) - 1) - 1, -1)
    norms = np.sqrt(np.maximum(values[order], 1e-300))
    return Components(mean, (centered.T @ vectors[:, order] / norms).T, norms / np.sqrt(len(spectra)))


def best_evidence(kernel: FloatArray, residual: FloatArray) -> tuple[float, float]:
    """Maximise the log marginal likelihood over noise and amplitude.

    Args:
        kernel: (n, n) covariance of unit amplitude.
        residual: (n,) labels minus their mean.

    Returns:
        The largest value and its noise variance relative to the amplitude.
    """
    values, vectors = np.linalg.eigh(kernel)
    projected, noises = (vectors.T @ residual) ** 2, np.geomspace(1e-4, 1.0, 12)
    spectrum = np.maximum(values, 0.0) + noises[:, None]
    amplitude = (projected / spectrum).mean(axis=1)
    evidence = -0.5 * (len(residual) * np.log(amplitude) + np.log(spectrum).sum(axis=1))
    return float(evidence.max()), float(noises[evidence.argmax()])
