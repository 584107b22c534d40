"""Baselines without a foundation model: kernel ridge regression and Gaussian processes on the spectra.

All take continuum-normalised spectra on the LAMOST grid as NumPy arrays, with masked pixels filled, and the
labels of training stars only, so that nothing depends on a test label. Features, kernels and noise are
optimised separately for every seed, by marginal likelihood or cross-validation.

    kernel-ridge   target stars only; RBF kernel on principal components, grid by 5-fold cross-validation
    gp-target      target stars only; RBF + linear kernel, all hyperparameters by marginal likelihood
    gp-joint       source and target; the posterior given the source stars is the prior for the target
    affine         a straight line fitted to the zero-shot predictions of the training stars

`run_baselines` runs them on the splits of a table; 16 seeds take about 10 s per target on one core.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from experiments.joint_process import JointGaussianProcess
from experiments.spectral_kernels import Kernel, bandpass, best_evidence, principal_components
from specjax.typing import FloatArray, IntArray

FILTERS = ((0.0, 0.0), (2.0, 0.0), (0.0, 30.0), (2.0, 30.0))  # (smooth, highpass) of `bandpass`
COMPONENTS = (10, 20, 40)
LENGTHS = (1.0, 3.0, 10.0)  # squared length scale of the RBF kernel, as in `Kernel.mix`
LINEAR = (0.0, 0.3, 3.0)  # weight of the linear kernel relative to the RBF kernel


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
    """Predict the test stars of every seed with every baseline.

    Args:
        source_flux: (m, p) normalised spectra of the source survey.
        source_labels: (m,) their labels.
        target_flux: (n, p) normalised spectra of the target survey.
        target_labels: (n,) their labels; those of test stars are not used.
        train: (seeds, a) indices of the training stars.
        test: (seeds, b) indices of the test stars.
        zero_shot: (n,) or (seeds, n) predictions of a model that saw no target star, for "affine".
        jobs: number of processes among which the seeds are divided.

    Returns:
        Predictions (seeds, b) by baseline, in the unit of the label; "affine" only with ``zero_shot``.
    """
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    target, y = np.asarray(target_flux, dtype=np.float64), np.asarray(target_labels, dtype=np.float64)
    train, test = np.asarray(train), np.asarray(test)
    splits = list(zip(train, test, strict=True))
    joint = JointGaussianProcess(source_flux, source_labels, target)
    target_only = Parallel(n_jobs=min(jobs, len(splits)))(
        delayed(_predict_from_target)(target[a], y[a], target[b]) for a, b in splits
    )
    with threadpool_limits(1):  # as in `_predict_from_target`
        from_both = [joint.fit_predict(a, y[a], b) for a, b in splits]
    ridge, process = zip(*target_only, strict=True)
    results = {"kernel-ridge": list(ridge), "gp-target": list(process), "gp-joint": from_both}
    if zero_shot is not None:
        results["affine"] = list(recalibrate_seeds(zero_shot, y, train, test))
    return {name: np.stack(predicted) for name, predicted in results.items()}


def target_baselines(
    flux: ArrayLike, labels: ArrayLike, train: ArrayLike, *, jobs: int = 1
) -> dict[str, FloatArray]:
    """Predict all stars of every seed with the baselines that learn from the target alone.

    Args:
        flux: (n, p) normalised spectra.
        labels: (n,) labels; those of stars that are not trained on are not used.
        train: (seeds, a) indices of the training stars.
        jobs: number of processes among which the seeds are divided.

    Returns:
        Predictions (seeds, n) of "kernel-ridge" and "gp-target", in the unit of the label.
    """
    from joblib import Parallel, delayed

    spectra, y = np.asarray(flux, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    rows = list(np.asarray(train))
    found = Parallel(n_jobs=min(jobs, len(rows)))(
        delayed(_predict_from_target)(spectra[a], y[a], spectra) for a in rows
    )
    ridge, process = zip(*found, strict=True)
    return {"kernel-ridge": np.stack(ridge), "gp-target": np.stack(process)}


def _predict_from_target(
    flux: FloatArray, labels: FloatArray, others: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Predict (b,) labels by kernel ridge regression and by a Gaussian process on (a, p) target stars."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # on matrices of 60 stars, threads cost more than they gain
        return kernel_ridge(flux, labels, others), target_gaussian_process(flux, labels, others)


def recalibrate_seeds(
    predicted: ArrayLike, labels: FloatArray, train: IntArray, test: IntArray
) -> FloatArray:
    """Apply `recalibrate` to predictions (n,) or (seeds, n) for the test stars of every seed.

    Args:
        predicted: predictions of a model that saw no target star.
        labels: (n,) labels; those of test stars are not used.
        train: (seeds, a) indices of the training stars.
        test: (seeds, b) indices of the test stars.

    Returns:
        (seeds, b).
    """
    rows = np.broadcast_to(np.asarray(predicted, dtype=np.float64), (len(train), len(labels)))
    seeds = zip(rows, train, test, strict=True)
    return np.stack([recalibrate(z[a], labels[a], z[b]) for z, a, b in seeds])


def recalibrate(predicted: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """Map (b,) other predictions by the least-squares line from (a,) predictions to (a,) labels."""
    slope, intercept = np.polyfit(predicted, labels, 1)
    return np.asarray(slope * others + intercept)


def kernel_ridge(flux: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """Predict labels (b,) of other spectra (b, p) by kernel ridge regression on 20 principal components.

    High-pass filter, kernel width and ridge are chosen by 5-fold cross-validation on the training spectra
    ``flux`` (a, p) with ``labels`` (a,).
    """
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV, KFold

    mean, best, prediction = labels.mean(), -np.inf, np.empty(0)
    grid = {"alpha": np.geomspace(1e-3, 1.0, 4), "gamma": [1 / 80.0, 1 / 20.0, 1 / 5.0]}
    for highpass in (0.0, 30.0):
        a, b = (bandpass(f, 2.0, highpass) for f in (flux, others))
        center, axes, scale = principal_components(a, 20)
        a, b = ((f - center) @ axes.T / scale[0] for f in (a, b))
        folds = KFold(5, shuffle=True, random_state=0)
        search = GridSearchCV(KernelRidge(kernel="rbf"), grid, scoring="neg_mean_absolute_error", cv=folds)
        search.fit(a, labels - mean)
        if search.best_score_ > best:
            best, prediction = search.best_score_, mean + search.predict(b)
    return prediction


def target_gaussian_process(flux: FloatArray, labels: FloatArray, others: FloatArray) -> FloatArray:
    """Predict labels (b,) of other spectra (b, p) by a Gaussian process on spectra (a, p) and labels (a,).

    Filter, number and weight of components, length scale, linear weight and noise maximise the marginal
    likelihood; the amplitude that does is known in closed form.
    """
    mean, n = labels.mean(), len(labels)
    best, prediction = -np.inf, np.full(len(others), mean)
    for a, b in _features(flux, others):
        inner, outer = (Kernel.between(x, a) for x in (a, b))
        for length, linear in itertools.product(LENGTHS, LINEAR):
            kernel = inner.mix(length, linear, inner)
            evidence, noise = best_evidence(kernel, labels - mean)
            if evidence > best:
                weights = np.linalg.solve(kernel + noise * np.eye(n), labels - mean)
                best, prediction = evidence, mean + outer.mix(length, linear, inner) @ weights
    return prediction


def _features(flux: FloatArray, others: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield the features of both sets for each filter, number and weighting of components."""
    for smooth, highpass in FILTERS:
        a, b = (bandpass(f, smooth, highpass) for f in (flux, others))
        center, axes, scale = principal_components(a, max(COMPONENTS))
        a, b = ((f - center) @ axes.T for f in (a, b))
        for components, power in itertools.product(COMPONENTS, (0.0, 0.5)):
            unit = scale[0] * (scale[:components] / scale[0]) ** power
            yield a[:, :components] / unit, b[:, :components] / unit
