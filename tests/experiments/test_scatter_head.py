import numpy as np
import pytest

from experiments.scatter_head import FREEDOM, components, fit_correction

RNG = np.random.default_rng(0)
TRUE = np.array([0.3, 0.08, -0.05])


def stars(n, slope=0.0, rng=RNG):
    """Components, and residuals about a linear correction whose scatter depends on the first one."""
    inputs = rng.normal(size=(n, 2))
    scatter = 0.1 * np.exp(slope * inputs[:, 0])
    residual = TRUE[0] + inputs @ TRUE[1:] + scatter * rng.standard_t(FREEDOM, n)
    return inputs, residual, scatter


def test_components_are_uncorrelated_and_of_unit_variance():
    features = RNG.normal(size=(300, 20)) @ RNG.normal(size=(20, 20))
    found = components(features)
    np.testing.assert_allclose(found.T @ found / 300, np.eye(8), atol=1e-9)
    assert components(features[:, :1] * np.ones(5)).shape == (300, 1)  # of rank one


@pytest.mark.parametrize("own_scatter", [False, True])
def test_correction_and_scatter_are_found(own_scatter):
    inputs, residual, scatter = stars(5000, slope=0.3 if own_scatter else 0.0)
    correction, found = fit_correction(inputs, residual, inputs, own_scatter=own_scatter)
    np.testing.assert_allclose(correction, TRUE[0] + inputs @ TRUE[1:], atol=0.02)  # 0.002 a coefficient
    np.testing.assert_allclose(np.log(found / scatter), 0.0, atol=0.15)
    if not own_scatter:
        assert np.ptp(found) < 1e-9


def test_its_own_scatter_makes_the_correction_more_exact():
    """Where stars differ in scatter by a factor of ten."""
    errors: dict[bool, list[float]] = {False: [], True: []}
    others = RNG.normal(size=(200, 2))
    for seed in range(20):
        inputs, residual, _ = stars(80, slope=0.8, rng=np.random.default_rng(seed))
        for own_scatter, found in errors.items():
            correction, _ = fit_correction(inputs, residual, others, own_scatter=own_scatter)
            found.append(float(np.mean((correction - TRUE[0] - others @ TRUE[1:]) ** 2)))
    assert np.mean(errors[True]) < 0.9 * np.mean(errors[False])


def test_few_stars_are_corrected_by_a_constant():
    """The priors hold the other coefficients."""
    inputs = RNG.normal(size=(10, 8))
    correction, _ = fit_correction(
        inputs, np.full(10, 0.5) + 0.01 * RNG.normal(size=10), inputs, own_scatter=True
    )
    np.testing.assert_allclose(correction, 0.5, atol=0.03)
