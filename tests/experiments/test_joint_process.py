import numpy as np

from experiments.joint_process import JointGaussianProcess, source_hyperparameters
from experiments.spectral_kernels import Kernel, bandpass


def test_finds_the_resolution_and_the_zero_point(problem, sharp_target):
    source = problem["source_flux"], problem["source_labels"]
    joint = JointGaussianProcess(*source, problem["target_flux"])
    train = problem["train"][0]
    assert joint.match_width(train) in (3.0, 4.5)  # next to 4 on the grid
    assert JointGaussianProcess(*source, sharp_target).match_width(np.arange(20)) == 0.0
    predicted = joint.fit_predict(train, problem["target_labels"][train], problem["test"][0])
    zero_point = np.median(predicted - problem["target_labels"][problem["test"][0]])
    assert abs(zero_point) < 0.05  # the labels differ by 0.15 between the surveys


def test_conditioning_in_two_steps_equals_conditioning_at_once(problem):
    source, labels = problem["source_flux"], problem["source_labels"]
    joint = JointGaussianProcess(source, labels, problem["target_flux"])
    train, test, noise = problem["train"][0], problem["test"][0], 0.01
    prior = joint._prior(3.0, 0.0, 15)
    inner = prior.covariance[np.ix_(train, train)] + noise * np.eye(len(train))
    residual = problem["target_labels"][train] - prior.mean[train]
    two_steps = prior.mean[test] + prior.covariance[np.ix_(test, train)] @ np.linalg.solve(inner, residual)

    center, axes, scale = joint._basis(3.0, 0.0)
    fluxes = np.concatenate([bandpass(source, 3.0, 0.0), problem["target_flux"]])
    x = (fluxes - center) @ axes[:15].T / scale[0]
    own = Kernel.between(x[: len(labels)], x[: len(labels)])
    length, linear, relative = source_hyperparameters(own, labels - labels.mean())
    kernel = Kernel.between(x, x).mix(length, linear, own)
    known = kernel[: len(labels), : len(labels)] + relative * np.eye(len(labels))
    y = labels - labels.mean()
    kernel = kernel * (y @ np.linalg.solve(known, y) / len(y))
    rows, new = np.concatenate([np.arange(len(labels)), len(labels) + train]), len(labels) + test
    noises = np.where(
        np.arange(len(rows)) < len(labels), relative * kernel[0, 0] / _first(x, own, linear), noise
    )
    values = np.concatenate([y, problem["target_labels"][train] - labels.mean()])
    weights = np.linalg.solve(kernel[np.ix_(rows, rows)] + np.diag(noises), values)
    at_once = labels.mean() + kernel[np.ix_(new, rows)] @ weights
    # Both solve systems of a hundred stars with condition numbers of about 1e5 in float64.
    np.testing.assert_allclose(two_steps, at_once, atol=1e-8)


def _first(x, own, linear):
    """The variance of the first star before the amplitude: 1 for the RBF, plus the linear part."""
    return 1.0 + linear * (x[0] @ x[0]) * len(own.product) / np.trace(own.product)
