"""A Gaussian process over the stars of the source and the target survey."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from experiments.spectral_kernels import Components, Kernel, bandpass, principal_components
from specjax.typing import FloatArray, IntArray

WIDTHS = (0.0, 1.0, 2.0, 3.0, 4.5, 6.5, 9.0, 12.0)
"""Gaussian sigmas in pixels that are tried to match the resolution of the source to that of the target."""


class JointGaussianProcess:
    """Gaussian process in which the source stars set the prior for the target stars.

    Labels of source stars are f(spectrum) + noise, those of target stars f(spectrum) + g(spectrum) + offset +
    noise; each survey has its own noise. f and g have RBF + linear kernels on the principal components of the
    source.

    - Source spectra are first smoothed to the target's resolution. No label enters: the width is the one at
      which the components of the source describe the training spectra best.
    - The hyperparameters of f maximise the marginal likelihood of the source.
    - The posterior of f given the source stars is the prior at the target stars; the training labels then
      determine g and the noise of the target.
    - The predictions of two high-pass filters and two numbers of components are averaged by evidence.
    """

    def __init__(self, source_flux: ArrayLike, source_labels: ArrayLike, target_flux: ArrayLike) -> None:
        """Take (m, p) source spectra, their (m,) labels, and all (n, p) target spectra without labels."""
        self.source, self.target = (np.asarray(f, dtype=np.float64) for f in (source_flux, target_flux))
        self.labels = np.asarray(source_labels, dtype=np.float64)
        self._sharp = bandpass(self.target, 0.0, 60.0)
        # Cached on the instance: a cache on the methods would keep the arrays of every instance alive.
        self._sample_basis = cache(self._make_sample_basis)
        self._basis = cache(self._make_basis)
        self._prior = cache(self._make_prior)

    def fit_predict(self, train: IntArray, labels: FloatArray, test: IntArray) -> FloatArray:
        """Predict (b,) labels of target stars ``test`` from the (a,) labels of target stars ``train``."""
        width = self.match_width(train)
        evidences, predictions = [], []
        for highpass in (0.0, 60.0):
            for components in (15, 30):
                prior = self._prior(width, highpass, components)
                evidence, covariance, noise = fit_discrepancy(prior, train, labels)
                inner = covariance[np.ix_(train, train)] + noise * np.eye(len(train))
                weights = np.linalg.solve(inner, labels - prior.mean[train])
                evidences.append(evidence)
                predictions.append(prior.mean[test] + covariance[np.ix_(test, train)] @ weights)
        shares = np.exp(np.array(evidences) - max(evidences))
        return np.average(predictions, axis=0, weights=shares)

    def match_width(self, train: IntArray) -> float:
        """Return the sigma of `WIDTHS` that smooths the source to the resolution of the target."""

        def misfit(width: float) -> float:
            center, axes, _ = self._sample_basis(width)
            difference = self._sharp[train] - center
            return float(np.sum((difference - difference @ axes.T @ axes) ** 2))

        return min(WIDTHS, key=misfit)

    def _make_sample_basis(self, width: float) -> Components:
        """Components of 200 smoothed source spectra, which suffice to compare widths."""
        sample = np.random.default_rng(0).permutation(len(self.source))[:200]
        return principal_components(bandpass(self.source[sample], width, 60.0), 30)

    def _make_basis(self, width: float, highpass: float) -> Components:
        return principal_components(bandpass(self.source, width, highpass), 30)

    def _make_prior(self, width: float, highpass: float, components: int) -> "Prior":
        center, axes, scale = self._basis(width, highpass)
        project = axes[:components].T / scale[0]
        a = (bandpass(self.source, width, highpass) - center) @ project
        b = (bandpass(self.target, 0.0, highpass) - center) @ project
        mean, residual = self.labels.mean(), self.labels - self.labels.mean()
        within, across, target = Kernel.between(a, a), Kernel.between(b, a), Kernel.between(b, b)
        length, linear, noise = source_hyperparameters(within, residual)
        factor = cho_factor(within.mix(length, linear, within) + noise * np.eye(len(a)), lower=True)
        weights = cho_solve(factor, residual)
        amplitude = float(residual @ weights) / len(a)
        k_across, k_target = across.mix(length, linear, within), target.mix(length, linear, within)
        explained = solve_triangular(factor[0], k_across.T, lower=True)
        return Prior(
            mean=mean + k_across @ weights,
            covariance=amplitude * (k_target - explained.T @ explained),
            rbf=amplitude * target.mix(length, 0.0, within),
            linear=amplitude * (target.mix(length, 1.0, within) - target.mix(length, 0.0, within)),
        )


class Prior(NamedTuple):
    """Posterior of f at the n target stars, given the source stars, and the kernels of g."""

    mean: FloatArray
    """(n,)"""
    covariance: FloatArray
    """(n, n)"""
    rbf: FloatArray
    """(n, n)"""
    linear: FloatArray
    """(n, n)"""


def source_hyperparameters(
    kernel: Kernel, residual: FloatArray, most: int = 200
) -> tuple[float, float, float]:
    """Maximise the marginal likelihood of the source.

    Args:
        kernel: kernel of the m source stars with themselves.
        residual: (m,) their labels minus the mean.
        most: number of stars that are used at most.

    Returns:
        Squared length, linear weight (see `Kernel.mix`) and noise variance relative to the amplitude.
    """
    chosen = np.random.default_rng(0).permutation(len(residual))[:most]
    small = Kernel(*(k[np.ix_(chosen, chosen)] for k in kernel))
    y = residual[chosen]

    def minus_evidence(logs: Sequence[float]) -> float:
        length, linear, noise = np.exp(np.clip(logs, -12.0, 6.0))
        factor = cho_factor(small.mix(length, linear, small) + (noise + 1e-6) * np.eye(len(y)), lower=True)
        amplitude = y @ cho_solve(factor, y) / len(y)
        return float(0.5 * len(y) * np.log(amplitude) + np.log(np.diag(factor[0])).sum())

    options: Any = {"maxfev": 80, "xatol": 0.05, "fatol": 0.3}
    found = minimize(minus_evidence, [0.0, 0.5, -2.5], method="Nelder-Mead", options=options)
    length, linear, noise = np.exp(np.clip(found.x, -12.0, 6.0))
    return float(length), float(linear), float(noise + 1e-6)


def fit_discrepancy(prior: Prior, train: IntArray, labels: FloatArray) -> tuple[float, FloatArray, float]:
    """Maximise the marginal likelihood of the training labels over the amplitudes of g and the noise.

    Args:
        prior: mean and kernels at the n target stars.
        train: (a,) indices of the training stars.
        labels: (a,) their labels.

    Returns:
        Log marginal likelihood, covariance (n, n) of f + g + offset, and noise variance in dex^2.
    """
    residual, noises = labels - prior.mean[train], np.square([0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4])
    best: tuple[float, FloatArray, float] = (-np.inf, prior.covariance, 0.0)
    for rbf in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0):
        for linear in (0.0, 0.03, 0.3):
            # The zero points of the surveys differ by 0.3 dex (1 sigma) a priori.
            covariance = prior.covariance + rbf * prior.rbf + linear * prior.linear + 0.3**2
            values, vectors = np.linalg.eigh(covariance[np.ix_(train, train)])
            spectrum = np.maximum(values, 1e-9) + noises[:, None]
            misfit = ((vectors.T @ residual) ** 2 / spectrum).sum(axis=1)
            evidence = -0.5 * (np.log(spectrum).sum(axis=1) + misfit)
            if evidence.max() > best[0]:
                best = float(evidence.max()), covariance, float(noises[evidence.argmax()])
    return best
