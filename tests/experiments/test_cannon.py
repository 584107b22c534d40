import numpy as np
import pytest

from experiments import cannon
from experiments.cannon import Cannon, quadratic, quadratic_jacobian, run_cannon

PIXELS, STARS = 120, 50
CENTRE, SPREAD = np.array([5500.0, 3.0, -0.5]), np.array([800.0, 1.2, 0.6])


def draw(n, seed):
    """Labels (n, 3) and noiseless spectra (n, PIXELS) that are quadratic polynomials of them."""
    rng, lines = np.random.default_rng(seed), np.random.default_rng(99)
    standard = rng.uniform(-1.5, 1.5, (n, 3))
    coefficients = lines.normal(size=(PIXELS, 10)) * np.repeat([0.0, 0.05, 0.01], [1, 3, 6])
    return standard * SPREAD + CENTRE, 1 + quadratic(standard) @ coefficients.T


@pytest.fixture(scope="module")
def survey():
    """The arguments of `run_cannon` for two splits, with noise that differs between the pixels."""
    labels, flux = draw(STARS, 0)
    rng = np.random.default_rng(1)
    sigma = rng.uniform(0.002, 0.02, flux.shape)
    order = np.stack([rng.permutation(STARS) for _ in range(2)])
    return {
        "flux": flux + sigma * rng.normal(size=flux.shape),
        "variance": sigma**2,
        "labels": labels,
        "train": order[:, :35],
        "test": order[:, 35:],
    }


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch):
    monkeypatch.setattr(cannon, "RIDGE", (0.1, 1e6))


def test_the_jacobian_agrees_with_finite_differences():
    x, step = np.array([0.3, -1.2, 0.8]), 1e-6
    differences = [(quadratic(x + h) - quadratic(x - h)) / (2 * step) for h in step * np.eye(3)]
    np.testing.assert_allclose(quadratic_jacobian(x), np.transpose(differences), atol=1e-9)


def test_recovers_the_labels_of_spectra_that_obey_the_model():
    labels, flux = draw(60, 2)
    model = Cannon.fit(flux, np.zeros(flux.shape), labels, ridge=0.0)
    inside = (np.abs((labels - CENTRE) / SPREAD) < 1.2).all(axis=1)  # of the box around the training labels
    found = model.predict(flux[inside], np.zeros(flux[inside].shape))
    # The small ridge on constant and linear terms, 1e-3 stars in 60, biases the labels by about 1e-4.
    np.testing.assert_allclose((found - labels[inside]) / SPREAD, 0.0, atol=1e-3)


def test_the_scatter_is_what_exceeds_the_noise():
    labels, flux = draw(400, 3)
    rng = np.random.default_rng(4)
    noisy = flux + np.hypot(0.03, 0.04) * rng.normal(size=flux.shape)
    model = Cannon.fit(noisy, np.full(flux.shape, 0.03**2), labels, ridge=0.1)
    # The variance of 390 degrees of freedom is known to 7%; a median of 120 pixels to 1%.
    assert np.median(model.scatter) == pytest.approx(0.04**2, rel=0.05)


def test_is_far_better_than_the_mean_and_uses_the_noise(survey):
    survey = {**survey, "train": survey["train"][:1], "test": survey["test"][:1]}
    truth = survey["labels"][survey["test"], 2]
    clean = np.std(run_cannon(**survey) - truth)
    assert clean < 0.2 * np.std(truth)
    rng = np.random.default_rng(5)
    bad = rng.random(survey["flux"].shape) < 0.2  # other pixels in every star
    spoilt = {**survey, "flux": survey["flux"] + np.where(bad, 0.3 * rng.normal(size=bad.shape), 0.0)}
    known, masked = ({**spoilt, "variance": np.where(bad, v, survey["variance"])} for v in (0.3**2, np.inf))
    unaware, aware, without = (np.std(run_cannon(**one) - truth) for one in (spoilt, known, masked))
    assert aware < 0.5 * unaware
    # So noisy pixels tell almost nothing: to know their noise is as good as to leave them out.
    assert aware < 1.2 * without


def test_masked_pixels_have_no_influence(survey):
    changed = {**survey, "train": survey["train"][:1], "test": survey["test"][:1]}
    changed |= {name: survey[name].copy() for name in ("flux", "variance")}
    changed["variance"][::3, 7] = np.inf
    first = run_cannon(**changed)
    changed["flux"][::3, 7] = 100.0
    # The same weights of zero in sums of other numbers: only the rounding of the products differs.
    np.testing.assert_allclose(run_cannon(**changed), first, rtol=1e-9)


def test_predictions_do_not_depend_on_test_labels(survey):
    made = run_cannon(**survey)
    assert made.shape == survey["test"].shape
    for k, (train, test) in enumerate(zip(survey["train"], survey["test"], strict=True)):
        blind = survey["labels"].copy()
        blind[test] = np.nan
        one = run_cannon(**{**survey, "labels": blind, "train": train[None], "test": test[None]})
        np.testing.assert_array_equal(one[0], made[k])


def test_a_linear_model_is_selected_only_for_linear_spectra(survey):
    train = survey["train"][0]
    flux, variance, labels = (survey[name][train] for name in ("flux", "variance", "labels"))
    assert cannon.select_ridge(flux, variance, labels, 2) == 0.1
    standard = (labels - CENTRE) / SPREAD
    lines = np.random.default_rng(6).normal(size=(3, 6)) * 0.05
    linear = 1 + standard @ lines + 0.05 * np.random.default_rng(7).normal(size=(len(train), 6))
    # Six noisy pixels do not determine quadratic terms.
    assert cannon.select_ridge(linear, np.full(linear.shape, 0.05**2), labels, 2) == 1e6
