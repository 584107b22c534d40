import numpy as np
import pytest

from experiments.generative import APART, STARTS, Box, Whitening, fit_labels, pixel_variance, starting_points
from tests.models.tiny import on_grid

PIXELS = 50


def test_whitening_gives_the_inverse_of_the_covariance():
    rng = np.random.default_rng(0)
    variance, directions = rng.uniform(0.5, 2.0, PIXELS), rng.normal(size=(4, PIXELS))
    covariance = np.diag(variance) + directions.T @ directions
    residuals = rng.normal(size=(3, PIXELS))
    whitened = Whitening.of(variance, directions)(residuals)
    expected = residuals @ np.linalg.solve(covariance, residuals.T)
    np.testing.assert_allclose(whitened @ whitened.T, expected, rtol=1e-10)  # condition number of about 100


def test_whitening_ignores_pixels_of_infinite_variance():
    rng = np.random.default_rng(1)
    variance, directions, residual = np.ones(PIXELS), rng.normal(size=(3, PIXELS)), rng.normal(size=PIXELS)
    variance[10:20] = np.inf
    whiten = Whitening.of(variance, directions)
    changed = residual.copy()
    changed[10:20] = 1e3
    np.testing.assert_array_equal(whiten(changed), whiten(residual))


def test_variance_of_spectra_with_and_without_uncertainties():
    flux, mask = np.ones((2, 41)), np.zeros((2, 41), bool)
    mask[0, 3] = True
    expected = np.where(mask, np.inf, 0.25)
    np.testing.assert_array_equal(
        pixel_variance(on_grid(flux, mask=mask, ivar=np.full((2, 41), 4.0))), expected
    )
    np.testing.assert_array_equal(pixel_variance(on_grid(flux, mask=mask)), np.where(mask, np.inf, 0.0))


def test_starting_points_are_the_best_and_apart():
    rng = np.random.default_rng(2)
    labels, misfit = rng.normal(size=(200, 3)), rng.uniform(size=200)
    starts = starting_points(labels, misfit)
    assert len(starts) == STARTS
    np.testing.assert_array_equal(starts[0], labels[misfit.argmin()])
    gaps = np.abs(starts[:, None] - starts[None]).max(-1)[np.triu_indices(STARTS, 1)]
    assert gaps.min() > APART
    assert len(starting_points(np.zeros((5, 3)), np.arange(5.0))) == 1


@pytest.mark.parametrize("start", [-1.9, 1.9])
def test_the_deeper_of_two_minima_is_found_from_either_side_if_both_are_starts(start):
    # (x^2 - 1)^2 + (x - 1)^2 / 25: minima near -1 and at 1
    def residuals(x):
        return np.array([x[0] ** 2 - 1, (x[0] - 1) / 5])

    def jacobian(x):
        return np.array([[2 * x[0]], [0.2]])

    box = Box(np.array([-2.0]), np.array([2.0]))
    starts = np.array([[start], [-start]])
    np.testing.assert_allclose(fit_labels(residuals, jacobian, starts, box), [1.0], atol=1e-4)


def test_labels_stay_in_the_box():
    box = Box.around(np.array([[0.0, -1.0], [1.0, 2.0]]))
    found = fit_labels(lambda x: x - 5.0, lambda x: np.eye(2), np.array([[1.0, 2.0]]), box)
    np.testing.assert_allclose(found, [1.0, 2.0], atol=1e-3)  # the fit approaches the bounds from inside
