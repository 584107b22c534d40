"""What is possible without a foundation model: Gaussian processes and kernel ridge on the spectra themselves.

All take continuum-normalised spectra on the LAMOST grid as NumPy arrays with masked pixels filled, and the
labels of the training stars only, so that no choice can depend on a test star. Each is as good as we could
make it within that: features, kernel and noise are chosen for every seed by marginal likelihood or
cross-validation.

    kernel-ridge   target stars only; RBF kernel on principal components, grid by 5-fold cross-validation
    gp-target      target stars only; RBF + linear kernel, everything by marginal likelihood
    gp-joint       source and target; the posterior given the source stars is the prior on the target
    affine         a straight line through the zero-shot predictions of the training stars

`run_baselines` makes them all for the splits of a table; 16 seeds take about 10 s a target on one core.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.ndimage import gaussian_filter1d, uniform_filter1d
from scipy.optimize import minimize

from specjax.typing import FloatArray

Indices = NDArray[np.int_]

COMPONENTS = (10, 20, 40)
LENGTHS = (1.0, 3.0, 10.0)  # of the RBF kernel, squared, in units of the median squared distance
LINEAR = (0.0, 0.3, 3.0)  # weight of the linear kernel against the RBF's
WIDTHS = (0.0, 1.0, 2.0, 3.0, 4.5, 6.5, 9.0, 12.0)  # Gaussian sigma in pixels that may match source to target


def run_baselines(
    source_flux: ArrayLike,
    source_labels: ArrayLike,
    target_flux: ArrayLike,
    target_labels: ArrayLike,
    train: ArrayLike,
    test: ArrayLike,
    *,
    zero_shot: ArrayLike | None = None,
    jobs: int = 1,
) -> dict[str, FloatArray]:
    """Predict every seed's test stars with every baseline.

    Args:
        source_flux: (m, p) normalised spectra of the source survey.
        source_labels: (m,) their labels.
        target_flux: (n, p) normalised spectra of the target survey.
        target_labels: (n,) their labels; those of test stars are never read.
        train: (seeds, a) indices of training stars among the n.
        test: (seeds, b) indices of test stars.
        zero_shot: (n,) or (seeds, n) predictions of a model that saw no target star; without them there is no
            "affine".
        jobs: processes that share the seeds.

    Returns:
        Predictions (seeds, b) by baseline, in the label's unit.
    """
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    target, y = np.asarray(target_flux, dtype=np.float64), np.asarray(target_labels, dtype=np.float64)
    train, test = np.asarray(train), np.asarray(test)
    splits = list(zip(train, test, strict=True))
    joint = JointGaussianProcess(source_flux, source_labels, target)
    alone = Parallel(n_jobs=min(jobs, len(splits)))(
        delayed(_without_source)(target[a], y[a], target[b]) for a, b in splits
    )
    with threadpool_limits(1):  # as in `_without_source`
        together = [joint.fit_predict(a, y[a], b) for a, b in splits]
    ridge, process = zip(*alone, strict=True)
    results = {"kernel-ridge": list(ridge), "gp-target": list(process), "gp-joint": together}
    if zero_shot is not None:
        z = np.broadcast_to(np.asarray(zero_shot, dtype=np.float64), (len(train), len(y)))
        results["affine"] = [recalibrate(z[k, a], y[a], z[k, b]) for k, (a, b) in enumerate(splits)]
    return {name: np.stack(predicted) for name, predicted in results.items()}


def _without_source(
    flux: FloatArray, labels: FloatArray, others: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Predict others by kernel ridge and by a Gaussian process, each from (a, p) target stars alone."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # matrices of 60 stars are done before a second thread has started
        return kernel_ridge(flux, labels, others), target_gaussian_process(flux, labels, others)


def recalibrate(predicted: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """Put (b,) other predictions through the least-squares line from (a,) predictions to their labels."""
    slope, intercept = np.polyfit(predicted, labels, 1)
    return slope * others + intercept


def kernel_ridge(flux: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """Predict (b,) labels of other spectra (b, p) by kernel ridge regression on (a, p) and (a,) of them.

    scikit-learn's, on 20 principal components; high-pass, kernel width and ridge by 5-fold cross-validation.
    """
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV, KFold

    mean, best, prediction = labels.mean(), -np.inf, np.empty(0)
    grid = {"alpha": np.geomspace(1e-3, 1.0, 4), "gamma": [1 / 80.0, 1 / 20.0, 1 / 5.0]}
    for highpass in (0.0, 30.0):
        a, b = (prepare(f, 2.0, highpass) for f in (flux, others))
        center, axes, scale = _components(a, 20)
        a, b = ((f - center) @ axes.T / scale[0] for f in (a, b))
        folds = KFold(5, shuffle=True, random_state=0)
        search = GridSearchCV(KernelRidge(kernel="rbf"), grid, scoring="neg_mean_absolute_error", cv=folds)
        search.fit(a, labels - mean)
        if search.best_score_ > best:
            best, prediction = search.best_score_, mean + search.predict(b)
    return prediction


def target_gaussian_process(flux: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """Predict (b,) labels of other spectra (b, p) by a Gaussian process on (a, p) spectra and (a,) labels.

    Smoothing and high-pass, number and weight of components, length scale, linear part and noise are those of
    the largest marginal likelihood; the amplitude that maximises it is known in closed form.
    """
    mean, n = labels.mean(), len(labels)
    best, prediction = -np.inf, np.full(len(others), mean)
    for smooth, highpass in ((0.0, 0.0), (2.0, 0.0), (0.0, 30.0), (2.0, 30.0)):
        a_all, b_all = (prepare(f, smooth, highpass) for f in (flux, others))
        center, axes, scale = _components(a_all, max(COMPONENTS))
        a_all, b_all = ((f - center) @ axes.T for f in (a_all, b_all))
        for components in COMPONENTS:
            for power in (0.0, 0.5):
                unit = scale[0] * (scale[:components] / scale[0]) ** power
                a, b = a_all[:, :components] / unit, b_all[:, :components] / unit
                inner, outer = (_Kernel.between(x, a) for x in (a, b))
                for length in LENGTHS:
                    for linear in LINEAR:
                        kernel = inner.mix(length, linear, inner)
                        evidence, noise = _evidence(kernel, labels - mean)
                        if evidence > best:
                            weights = np.linalg.solve(kernel + noise * np.eye(n), labels - mean)
                            best, prediction = evidence, mean + outer.mix(length, linear, inner) @ weights
    return prediction


class JointGaussianProcess:
    """A Gaussian process over the stars of both surveys.

    label = f(spectrum) + g(spectrum) [target only] + offset [target only] + noise of its survey, f and g with
    RBF + linear kernels on principal components of the source. Source spectra are first smoothed to the
    target's resolution, which is found without labels: the width at which the source's components describe
    the training spectra best. f's hyperparameters are those of the largest marginal likelihood on the source.
    Given the source stars, f has a Gaussian posterior at the target stars; with it as the prior, the training
    labels set g and the target's noise. Two high-passes and two numbers of components are averaged by
    their evidence.
    """

    def __init__(self, source_flux: ArrayLike, source_labels: ArrayLike, target_flux: ArrayLike) -> None:
        """Take (m, p) source spectra with their (m,) labels, and all (n, p) target spectra, unlabelled."""
        self.source, self.target = (np.asarray(f, dtype=np.float64) for f in (source_flux, target_flux))
        self.labels = np.asarray(source_labels, dtype=np.float64)
        self._sharp = prepare(self.target, 0.0, 60.0)
        # A method's cache would keep the arrays of every problem alive.
        self._sample_basis = cache(self._make_sample_basis)
        self._basis = cache(self._make_basis)
        self._prior = cache(self._make_prior)

    def fit_predict(self, train: Indices, labels: FloatArray, test: Indices) -> FloatArray:
        """Predict the (b,) labels of target stars ``test`` from the (a,) labels of target stars ``train``."""
        width = self.match_width(train)
        evidences, predictions = [], []
        for highpass in (0.0, 60.0):
            for components in (15, 30):
                prior = self._prior(width, highpass, components)
                evidence, covariance, noise = _discrepancy(prior, train, labels)
                inner = covariance[np.ix_(train, train)] + noise * np.eye(len(train))
                weights = np.linalg.solve(inner, labels - prior.mean[train])
                evidences.append(evidence)
                predictions.append(prior.mean[test] + covariance[np.ix_(test, train)] @ weights)
        shares = np.exp(np.array(evidences) - max(evidences))
        return np.average(predictions, axis=0, weights=shares)

    def match_width(self, train: Indices) -> float:
        """Find the Gaussian sigma in pixels that brings the source to the resolution of target spectra."""

        def misfit(width: float) -> float:
            center, axes, _ = self._sample_basis(width)
            difference = self._sharp[train] - center
            return float(np.sum((difference - difference @ axes.T @ axes) ** 2))

        return min(WIDTHS, key=misfit)

    def _make_sample_basis(self, width: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Components of 200 of the smoothed source spectra, which are enough to tell widths apart."""
        chosen = np.random.default_rng(0).permutation(len(self.source))[:200]
        return _components(prepare(self.source[chosen], width, 60.0), 30)

    def _make_basis(self, width: float, highpass: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean, axes and scales of the 30 first components of the smoothed source."""
        return _components(prepare(self.source, width, highpass), 30)

    def _make_prior(self, width: float, highpass: float, components: int) -> "_Prior":
        """Posterior of f at every target star, given the source stars."""
        center, axes, scale = self._basis(width, highpass)
        project = axes[:components].T / scale[0]
        a = (prepare(self.source, width, highpass) - center) @ project
        b = (prepare(self.target, 0.0, highpass) - center) @ project
        mean, residual = self.labels.mean(), self.labels - self.labels.mean()
        within, across, target = _Kernel.between(a, a), _Kernel.between(b, a), _Kernel.between(b, b)
        length, linear, noise = _source_hyperparameters(within, residual)
        factor = cho_factor(within.mix(length, linear, within) + noise * np.eye(len(a)), lower=True)
        weights = cho_solve(factor, residual)
        amplitude = float(residual @ weights) / len(a)
        k_across, k_target = across.mix(length, linear, within), target.mix(length, linear, within)
        explained = solve_triangular(factor[0], k_across.T, lower=True)
        return _Prior(
            mean=mean + k_across @ weights,
            covariance=amplitude * (k_target - explained.T @ explained),
            rbf=amplitude * target.mix(length, 0.0, within),
            linear=amplitude * (target.mix(length, 1.0, within) - target.mix(length, 0.0, within)),
        )


class _Prior(NamedTuple):
    """What the source says about the n target stars, and the kernels of how the target may differ."""

    mean: FloatArray  # (n,)
    covariance: FloatArray  # (n, n)
    rbf: FloatArray  # (n, n)
    linear: FloatArray  # (n, n)


class _Kernel(NamedTuple):
    """Squared distances and inner products between two sets of stars."""

    distance: FloatArray
    product: FloatArray

    @classmethod
    def between(cls, a: FloatArray, b: FloatArray) -> "_Kernel":
        product = a @ b.T
        squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)
        return cls(np.maximum(squares - 2.0 * product, 0.0), product)

    def mix(self, length: float, linear: float, own: "_Kernel") -> FloatArray:
        """RBF of that squared length plus linear kernel of that weight, in the training set's units."""
        rbf = np.exp(-0.5 * self.distance / (length * np.median(own.distance)))
        return rbf + linear * self.product * (len(own.product) / np.trace(own.product))


def prepare(flux: FloatArray, smooth: float, highpass: float) -> FloatArray:
    """Smooth (n, p) spectra by a Gaussian of that sigma in pixels, divide by a wider one; 0 is neither."""
    smoothed = gaussian_filter1d(flux, smooth, axis=1) if smooth else flux
    if not highpass:
        return smoothed
    wide = smoothed
    for _ in range(
        3
    ):  # running means of width 2 sigma, three times over, are close to a Gaussian of that sigma
        wide = uniform_filter1d(wide, round(2 * highpass) + 1, axis=1)
    return smoothed / wide


def _components(spectra: FloatArray, number: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean (p,), axes (k, p) and standard deviations (k,) of the first principal components of (n, p)."""
    mean = spectra.mean(axis=0)
    centered = spectra - mean
    # By the smaller of the two Gram matrices, n x n: hundreds of stars against 1462 pixels.
    values, vectors = np.linalg.eigh(centered @ centered.T)
    order = slice(-1, -min(number, len(spectra) - 1) - 1, -1)
    norms = np.sqrt(np.maximum(values[order], 1e-300))
    return mean, (centered.T @ vectors[:, order] / norms).T, norms / np.sqrt(len(spectra))


def _evidence(kernel: FloatArray, residual: FloatArray) -> tuple[float, float]:
    """Log marginal likelihood at the best noise (relative to the amplitude) and amplitude, and that noise."""
    values, vectors = np.linalg.eigh(kernel)
    projected, noises = (vectors.T @ residual) ** 2, np.geomspace(1e-4, 1.0, 12)
    spectrum = np.maximum(values, 0.0) + noises[:, None]
    amplitude = (projected / spectrum).mean(axis=1)
    evidence = -0.5 * (len(residual) * np.log(amplitude) + np.log(spectrum).sum(axis=1))
    return float(evidence.max()), float(noises[evidence.argmax()])


def _source_hyperparameters(
    kernel: _Kernel, residual: FloatArray, most: int = 200
) -> tuple[float, float, float]:
    """Length, linear weight and relative noise by marginal likelihood, on at most ``most`` of the stars."""
    chosen = np.random.default_rng(0).permutation(len(residual))[:most]
    small = _Kernel(*(k[np.ix_(chosen, chosen)] for k in kernel))
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


def _discrepancy(prior: _Prior, train: Indices, labels: FloatArray) -> tuple[float, FloatArray, float]:
    """Best amplitude of g and noise variance (dex^2): evidence, covariance of all target stars, noise."""
    residual, noises = labels - prior.mean[train], np.square([0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4])
    best: tuple[float, FloatArray, float] = (-np.inf, prior.covariance, 0.0)
    for rbf in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0):
        for linear in (0.0, 0.03, 0.3):
            # The offset between the surveys' zero points is 0.3 dex or less beforehand.
            covariance = prior.covariance + rbf * prior.rbf + linear * prior.linear + 0.3**2
            values, vectors = np.linalg.eigh(covariance[np.ix_(train, train)])
            spectrum = np.maximum(values, 1e-9) + noises[:, None]
            misfit = ((vectors.T @ residual) ** 2 / spectrum).sum(axis=1)
            evidence = -0.5 * (np.log(spectrum).sum(axis=1) + misfit)
            if evidence.max() > best[0]:
                best = float(evidence.max()), covariance, float(noises[evidence.argmax()])
    return best
