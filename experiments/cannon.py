"""The Cannon (Ness et al. 2015, ApJ 808, 16, arXiv:1501.07604), trained on the stars of the target alone.

The normalised flux of each pixel is a quadratic polynomial of the labels, with its own scatter. The labels of
another star are fitted to all of its pixels, weighted by scatter and noise. With 60 stars the ten
coefficients of a pixel need regularisation: a ridge on the quadratic ones, whose strength, up to a linear
model, is chosen for every seed by cross-validation within its training stars. Choosing a high-pass filter in
the same way, or allowing for continuum errors as `payne` does, was worse on validation stars in the sum over
both targets.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from experiments.generative import Box, fit_labels, starting_points
from specjax.pretrain.corpus import LABELS
from specjax.typing import FloatArray

RIDGE = (0.1, 1.0, 10.0, 1e6)  # in stars; with the last one the model is linear
FOLDS = 5
MIN_SCATTER = 1e-3  # relative to the continuum
START = 0.03**2  # the scatter before it is estimated
_UNPENALISED = 1e-3  # ridge on the other coefficients, for pixels that few stars have
_ROUNDS = 2  # of coefficients, then scatter
_TINY = 1e-12  # keeps the equations of pixels that no star has regular


@dataclass(frozen=True, kw_only=True, eq=False)
class Cannon:
    """Quadratic polynomials of k standardised labels in p pixels.

    Attributes:
        mean: (k,) of the labels of the training stars.
        std: (k,) their standard deviation.
        labels: (n, k) their standardised labels, which bound those of other stars.
        coefficients: (p, q) of the terms of `quadratic`.
        scatter: (p,) variance of the flux about the polynomial beyond the noise; inf in pixels that too few
            training stars have.
    """

    mean: FloatArray
    std: FloatArray
    labels: FloatArray
    coefficients: FloatArray
    scatter: FloatArray

    @classmethod
    def fit(cls, flux: FloatArray, variance: FloatArray, labels: FloatArray, ridge: float) -> Self:
        """Fit the coefficients by weighted least squares and the scatter by the method of moments.

        The scatter is the weighted mean of the squared residuals, corrected for the number of coefficients,
        less the variance of the noise.

        Args:
            flux: (n, p) normalised flux.
            variance: (n, p) of its noise, inf where missing.
            labels: (n, k) in physical units.
            ridge: weight of the squares of the quadratic coefficients, in stars.
        """
        mean, std = labels.mean(axis=0), labels.std(axis=0)
        standard = (labels - mean) / std
        terms = quadratic(standard)
        number = terms.shape[1]
        penalty = np.where(np.arange(number) <= labels.shape[1], _UNPENALISED, ridge)
        products = (terms[:, :, None] * terms[:, None]).reshape(len(terms), -1)
        noise = np.where(np.isfinite(variance), variance, 0.0)
        count = np.isfinite(variance).sum(axis=0)
        scatter = np.full(flux.shape[1], START)
        for _ in range(_ROUNDS):
            weights = 1 / (scatter + variance)  # (n, p), 0 where missing
            total = np.maximum(weights.sum(axis=0), _TINY)
            gram = (weights.T @ products).reshape(-1, number, number)
            # The ridge is relative to the mean weight of the pixel's stars.
            scale = total / np.maximum(count, 1)
            inverse = np.linalg.inv(gram + scale[:, None, None] * np.diag(penalty))
            right = (weights * flux).T @ terms
            coefficients = (inverse @ right[:, :, None])[:, :, 0]
            freedom = count - np.einsum("pij,pji->p", inverse, gram)  # less the effective parameters
            squares = (flux - terms @ coefficients.T) ** 2 * (count / np.maximum(freedom, 1))
            scatter = np.maximum((weights * (squares - noise)).sum(axis=0) / total, MIN_SCATTER**2)
        scatter = np.where(count > number, scatter, np.inf)
        return cls(mean=mean, std=std, labels=standard, coefficients=coefficients, scatter=scatter)

    def predict(self, flux: FloatArray, variance: FloatArray) -> FloatArray:
        """Return labels (m, k) of spectra (m, p) with noise variance (m, p), inf where missing."""
        terms, box = quadratic(self.labels), Box.around(self.labels)
        fits = [self._predict_one(*star, terms, box) for star in zip(flux, variance, strict=True)]
        return np.array(fits) * self.std + self.mean

    def _predict_one(self, flux: FloatArray, variance: FloatArray, terms: FloatArray, box: Box) -> FloatArray:
        """Fit standardised labels (k,) to one spectrum, starting from those of training stars."""
        root = 1 / np.sqrt(self.scatter + variance)
        # The polynomials span q dimensions: outside them the residuals do not depend on the labels.
        axes, reduced = np.linalg.qr(self.coefficients * root[:, None])
        observed = axes.T @ (flux * root)
        misfit = ((terms @ reduced.T - observed) ** 2).sum(axis=1)
        return fit_labels(
            lambda x: reduced @ quadratic(x) - observed,
            lambda x: reduced @ quadratic_jacobian(x),
            starting_points(self.labels, misfit),
            box,
        )


def quadratic(labels: FloatArray) -> FloatArray:
    """Return the terms (..., q) of a quadratic polynomial of labels (..., k): 1, linear, quadratic."""
    first, second = np.triu_indices(labels.shape[-1])
    constant = np.ones((*labels.shape[:-1], 1))
    return np.concatenate([constant, labels, labels[..., first] * labels[..., second]], axis=-1)


def quadratic_jacobian(labels: FloatArray) -> FloatArray:
    """Return the derivatives (q, k) of `quadratic` at labels (k,)."""
    unit = np.eye(len(labels))
    first, second = np.triu_indices(len(labels))
    products = unit[first] * labels[second, None] + unit[second] * labels[first, None]
    return np.concatenate([np.zeros((1, len(labels))), unit, products])


def run_cannon(
    flux: ArrayLike,
    variance: ArrayLike,
    labels: ArrayLike,
    train: ArrayLike,
    test: ArrayLike,
    *,
    jobs: int = 1,
) -> FloatArray:
    """Predict [Fe/H] of the test stars of every seed with The Cannon.

    Args:
        flux: (n, p) normalised spectra of the target survey, masked pixels filled.
        variance: (n, p) of their noise: inf in masked pixels, 0 if unknown.
        labels: (n, 3) `LABELS` of the stars; those of test stars are not used.
        train: (seeds, a) indices of the training stars.
        test: (seeds, b) indices of the test stars.
        jobs: number of processes among which the seeds are divided.

    Returns:
        (seeds, b), in dex.
    """
    from joblib import Parallel, delayed

    stars, noise, y = (np.asarray(array, dtype=np.float64) for array in (flux, variance, labels))
    splits = list(zip(np.asarray(train), np.asarray(test), strict=True))
    return np.stack(
        Parallel(n_jobs=min(jobs, len(splits)))(
            delayed(_predict)(stars[a], noise[a], y[a], stars[b], noise[b]) for a, b in splits
        )
    )


def _predict(
    flux: FloatArray, variance: FloatArray, labels: FloatArray, others: FloatArray, other_variance: FloatArray
) -> FloatArray:
    """Predict [Fe/H] (b,) of other stars from the labels of training stars."""
    from threadpoolctl import threadpool_limits

    fe_h = LABELS.index("fe_h")
    with threadpool_limits(1):  # on matrices of 60 stars, threads cost more than they gain
        model = Cannon.fit(flux, variance, labels, select_ridge(flux, variance, labels, fe_h))
        return model.predict(others, other_variance)[:, fe_h]


def select_ridge(flux: FloatArray, variance: FloatArray, labels: FloatArray, column: int) -> float:
    """Return the ridge with the smallest mean absolute error of one label in cross-validation.

    Args:
        flux: (n, p) spectra of the training stars.
        variance: (n, p) of their noise.
        labels: (n, k) their labels.
        column: the label that counts.
    """
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    errors = []
    for ridge in RIDGE:
        predicted = np.empty(len(labels))
        for k in range(FOLDS):
            a, b = fold != k, fold == k
            model = Cannon.fit(flux[a], variance[a], labels[a], ridge)
            predicted[b] = model.predict(flux[b], variance[b])[:, column]
        errors.append(np.abs(predicted - labels[:, column]).mean())
    return RIDGE[int(np.argmin(errors))]
