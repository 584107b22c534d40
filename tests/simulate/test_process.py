import jax
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from specjax.simulate import process
from specjax.simulate.process import LabelProcess, Shape, find_shape
from tests.simulate.test_labels import grid

SHAPE = Shape(np.array([1.5, 2.0, 2.0, 5.0, 5.0]), 1e-5)


def smooth_outputs(labels):
    """Outputs (n, 3) that are smooth functions of the labels."""
    x = (labels - grid().mean(axis=0)) / grid().std(axis=0)
    return np.stack([np.sin(x[:, 0]) * x[:, 2], np.exp(-0.3 * (x**2).sum(axis=1)), x[:, 1] ** 2], axis=1)


def test_stars_of_the_grid_are_reproduced():
    labels = grid()
    fitted = LabelProcess.fit(labels, smooth_outputs(labels), SHAPE)
    # The variance of the noise is 1e-5 of the process, whose standard deviation is below one here.
    np.testing.assert_allclose(fitted(labels), smooth_outputs(labels), atol=3 * np.sqrt(1e-5))


def test_stars_left_out_are_predicted():
    labels, others = grid(), grid(seed=1)[:100]
    fitted = LabelProcess.fit(labels, smooth_outputs(labels), SHAPE)
    error = np.abs(fitted(others) - smooth_outputs(others))
    basis = [process._quadratic(process._standardised(stars)[2], np) for stars in (labels, others)]
    quadratic = basis[1] @ np.linalg.lstsq(basis[0], smooth_outputs(labels), rcond=None)[0]
    alone = np.abs(quadratic - smooth_outputs(others))
    # Five times better than a quadratic fit where the function is not quadratic.
    assert (np.median(error, axis=0)[:2] < 0.2 * np.median(alone, axis=0)[:2]).all()
    assert (error[:, 2] < 1e-5).all()


def test_a_quadratic_function_is_exact_anywhere():
    labels = grid()
    x = np.stack([5040 / labels[:, 0], *labels.T[1:]], axis=1)
    outputs = (x @ np.arange(1.0, 6.0))[:, None] + (x[:, 0] * x[:, 2] - x[:, 1] ** 2)[:, None]
    fitted = LabelProcess.fit(labels[:200], outputs[:200], SHAPE)
    np.testing.assert_allclose(fitted(labels[200:]), outputs[200:], rtol=1e-4, atol=1e-4)  # float32


def test_the_likelihood_has_the_right_gradient():
    labels = grid(80)
    _, _, standard = process._standardised(labels)
    _, outputs = process._detrended(standard, smooth_outputs(labels))
    at = np.log([1.5, 2.0, 3.0, 5.0, 4.0, 1e-3])
    _, gradient = process._negative_likelihood(at, standard, outputs)
    numerical = approx_fprime(at, lambda x: process._negative_likelihood(x, standard, outputs)[0], 1e-6)
    np.testing.assert_allclose(gradient, numerical, rtol=1e-3, atol=1e-6)  # one-sided differences


def test_the_shape_found_is_likelier_than_its_neighbours():
    labels = grid(150)
    outputs = smooth_outputs(labels) + 0.03 * np.random.default_rng(0).standard_normal((150, 3))
    shape = find_shape(labels, outputs)
    _, _, standard = process._standardised(labels)
    _, residual = process._detrended(standard, outputs)
    residual = residual / residual.std(axis=0)
    best = np.log([*shape.length, shape.noise])
    value, _ = process._negative_likelihood(best, standard, residual)
    for step in np.concatenate([np.eye(6), -np.eye(6)]) * 0.3:
        inside = np.clip(best + step, np.log([*[0.2] * 5, process.NOISE]), np.log([*[50.0] * 5, 0.1]))
        neighbour, _ = process._negative_likelihood(inside, standard, residual)
        assert neighbour > value - 1e-4  # where the search stops


def test_derivatives_are_those_of_the_function_even_at_a_star_of_the_grid():
    labels = grid(100)
    fitted = LabelProcess.fit(labels, smooth_outputs(labels), SHAPE)
    star = labels[7].astype(np.float32)
    slope = jax.jacfwd(lambda x: fitted(x[None])[0])(star)
    step = np.array([5.0, 0.01, 0.01, 0.01, 0.01], np.float32)
    numerical = np.stack(
        [(fitted((star + h)[None])[0] - fitted((star - h)[None])[0]) / (2 * h.sum()) for h in np.diag(step)],
        axis=1,
    )
    scale = np.abs(numerical).max(axis=0)
    # The rounding of float32 over the width of the differences.
    assert (np.abs(slope - numerical) < 0.02 * scale).all()


@pytest.mark.parametrize("b", [1, 5])
def test_shapes(b):
    labels = grid(100)
    fitted = LabelProcess.fit(labels, smooth_outputs(labels), SHAPE)
    assert fitted(labels[:b]).shape == (b, 3)
    np.testing.assert_allclose(fitted(labels[:b]), fitted(labels)[:b], atol=1e-5)
