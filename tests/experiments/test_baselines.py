import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from experiments import baselines

PIXELS = 300


def survey(seed, n, blur=0.0, noise=0.002, offset=0.0):
    """Spectra of forty lines that deepen with the label and, for half of them, with a second parameter."""
    lines = np.random.default_rng(99)
    places, depths = lines.uniform(10, PIXELS - 10, 40), lines.uniform(0.02, 0.3, 40)
    rng = np.random.default_rng(seed)
    label, other = rng.uniform(-2.0, 0.5, n), rng.uniform(0.0, 1.0, n)
    strength = 10 ** (0.4 * label)[:, None] * np.where(np.arange(40) < 20, 1.0, 0.5 + other[:, None])
    shapes = np.exp(-0.5 * ((np.arange(PIXELS) - places[:, None]) / 1.5) ** 2)
    flux = np.exp(-(strength * depths) @ shapes)
    flux = gaussian_filter1d(flux, blur, axis=1) if blur else flux
    return flux + noise * rng.normal(size=flux.shape), label + offset


@pytest.fixture(scope="module")
def problem():
    source = survey(1, 90)
    target = survey(2, 60, blur=4.0, offset=0.15)
    rng = np.random.default_rng(3)
    order = np.stack([rng.permutation(60) for _ in range(2)])
    return {
        "source_flux": source[0],
        "source_labels": source[1],
        "target_flux": target[0],
        "target_labels": target[1],
        "train": order[:, :20],
        "test": order[:, 25:],
    }


@pytest.fixture(scope="module")
def predictions(problem):
    return baselines.run_baselines(**problem, zero_shot=0.5 * problem["target_labels"] - 1.0)


def test_every_baseline_predicts_every_test_star(problem, predictions):
    assert list(predictions) == ["kernel-ridge", "gp-target", "gp-joint", "affine"]
    for predicted in predictions.values():
        assert predicted.shape == problem["test"].shape
        assert np.isfinite(predicted).all()


def test_every_baseline_beats_the_mean_by_far(problem, predictions):
    truth = problem["target_labels"][problem["test"]]
    for name, predicted in predictions.items():
        # The lines follow the label closely: a working regression leaves a tenth of the labels' spread.
        assert np.std(predicted - truth) < 0.2 * np.std(truth), name


def test_no_prediction_depends_on_a_test_label(problem, predictions):
    hidden = np.array(problem["target_labels"])
    for k, (train, test) in enumerate(zip(problem["train"], problem["test"], strict=True)):
        blind = hidden.copy()
        blind[test] = np.nan
        one = {**problem, "target_labels": blind, "train": train[None], "test": test[None]}
        for name, predicted in baselines.run_baselines(**one).items():
            np.testing.assert_array_equal(predicted[0], predictions[name][k], err_msg=name)


def test_processes_share_the_seeds_and_change_nothing(problem, predictions):
    for name, predicted in baselines.run_baselines(**problem, jobs=2).items():
        np.testing.assert_array_equal(predicted, predictions[name], err_msg=name)


def test_the_source_helps_the_joint_process(problem, predictions):
    truth = problem["target_labels"][problem["test"]]
    joint, alone = (np.std(predictions[name] - truth) for name in ("gp-joint", "gp-target"))
    assert joint < 1.1 * alone  # on a problem this easy both are near the noise


def test_the_joint_process_finds_the_resolution_and_the_zero_point(problem):
    joint = baselines.JointGaussianProcess(
        problem["source_flux"], problem["source_labels"], problem["target_flux"]
    )
    train = problem["train"][0]
    assert joint.match_width(train) in (3.0, 4.5)  # the grid's neighbours of 4
    sharp = baselines.JointGaussianProcess(*(survey(1, 90)), survey(5, 30)[0])
    assert sharp.match_width(np.arange(20)) == 0.0
    predicted = joint.fit_predict(train, problem["target_labels"][train], problem["test"][0])
    zero_point = np.median(predicted - problem["target_labels"][problem["test"][0]])
    assert abs(zero_point) < 0.05  # the labels differ by 0.15 between the surveys


def test_recalibration_undoes_a_line():
    truth = np.array([-2.0, -1.0, 0.0, 0.3])
    np.testing.assert_allclose(
        baselines.recalibrate(0.5 * truth - 1.0, truth, np.array([-1.25])), [-0.5], rtol=1e-12
    )


def test_prepare_removes_a_slow_continuum_and_keeps_a_constant():
    x = np.linspace(-1.0, 1.0, 1000)
    slow = 1.0 + 0.1 * x[None]
    flat = baselines.prepare(slow, 0.0, 30.0)
    # The slope is gone but for the edges, where the running mean is one-sided.
    np.testing.assert_allclose(flat[:, 100:-100], 1.0, atol=1e-12)
    np.testing.assert_allclose(baselines.prepare(np.full((2, 50), 3.0), 2.0, 10.0), 1.0, rtol=1e-14)


def test_components_are_those_of_the_singular_value_decomposition():
    spectra = np.random.default_rng(0).normal(size=(12, 30))
    mean, axes, scale = baselines._components(spectra, 5)
    _, s, v = np.linalg.svd(spectra - spectra.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(mean, spectra.mean(axis=0))
    np.testing.assert_allclose(scale, s[:5] / np.sqrt(12), rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(axes * v[:5], axis=1)), 1.0, rtol=1e-10)  # signs are free


def test_conditioning_in_two_steps_is_conditioning_at_once(problem):
    source, labels = problem["source_flux"], problem["source_labels"]
    joint = baselines.JointGaussianProcess(source, labels, problem["target_flux"])
    train, test, noise = problem["train"][0], problem["test"][0], 0.01
    prior = joint._prior(3.0, 0.0, 15)
    inner = prior.covariance[np.ix_(train, train)] + noise * np.eye(len(train))
    residual = problem["target_labels"][train] - prior.mean[train]
    two_steps = prior.mean[test] + prior.covariance[np.ix_(test, train)] @ np.linalg.solve(inner, residual)

    center, axes, scale = joint._basis(3.0, 0.0)
    fluxes = np.concatenate([baselines.prepare(source, 3.0, 0.0), problem["target_flux"]])
    x = (fluxes - center) @ axes[:15].T / scale[0]
    own = baselines._Kernel.between(x[: len(labels)], x[: len(labels)])
    length, linear, relative = baselines._source_hyperparameters(own, labels - labels.mean())
    kernel = baselines._Kernel.between(x, x).mix(length, linear, own)
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
    # Both solve systems of a hundred stars, of condition number 1e5 or so, in float64.
    np.testing.assert_allclose(two_steps, at_once, atol=1e-8)


def _first(x, own, linear):
    """The first star's own kernel before the amplitude: 1 for the RBF, and its linear part."""
    return 1.0 + linear * (x[0] @ x[0]) * len(own.product) / np.trace(own.product)
