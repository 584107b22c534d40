import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.stats import biweight_scale
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from specjax.report import metrics


def transcribed(y):
    """Evaluate the definition term by term in Python floats."""
    d = [float(v) - float(np.median(y)) for v in y]
    m = float(np.median(np.abs(d))) / 0.6745
    if m < 1e-20:
        m = sum(abs(v) for v in d) / len(d) / 0.8
    if m < 1e-20:
        return 0.0
    inside = [(v, (v / (6 * m)) ** 2) for v in d if abs(v / (6 * m)) <= 1]
    den = sum((1 - u2) * (1 - 5 * u2) for _, u2 in inside)
    return (len(d) * sum(v**2 * (1 - u2) ** 4 for v, u2 in inside) / (den * (den - 1))) ** 0.5


# Multiples of 1/8 up to 1000 can be shifted, and scaled by powers of two, without rounding.
residuals = hnp.arrays(np.float64, st.integers(2, 60), elements=st.integers(-8000, 8000).map(lambda i: i / 8))


@given(residuals)
def test_robust_sigma_follows_its_definition(y):
    # The order of summation differs: 60 terms of float64 rounding, amplified by at most 16 through D (D - 1).
    np.testing.assert_allclose(metrics.robust_sigma(y), transcribed(y), rtol=1e-12)


@given(residuals, st.integers(-1000, 1000))
def test_robust_sigma_ignores_a_shift(y, shift):
    np.testing.assert_allclose(metrics.robust_sigma(y + shift), metrics.robust_sigma(y), rtol=1e-12)


@given(residuals, st.sampled_from([-4.0, -1.0, 0.5, 1024.0]))
def test_robust_sigma_scales(y, scale):
    np.testing.assert_allclose(
        metrics.robust_sigma(scale * y), abs(scale) * metrics.robust_sigma(y), rtol=1e-12
    )


@given(st.integers(0, 2**31), st.floats(1e3, 1e9))
def test_five_percent_of_outliers_hardly_matter(seed, far):
    y = np.random.default_rng(seed).normal(size=100)
    spoiled = np.where(np.arange(100) < 5, far, y)
    # Five outliers in a hundred move the median by about 0.06 and the MAD by 5%; 0.3 is five times that.
    assert abs(metrics.robust_sigma(spoiled) - metrics.robust_sigma(y)) < 0.3


def test_robust_sigma_approaches_astropy_for_many_residuals():
    y = np.random.default_rng(0).normal(scale=0.15, size=20_000)
    # Astropy divides by D^2, this by D (D - 1): they differ by 1 / (2 D), and D is about 0.7 n.
    expected = biweight_scale(y, c=6.0 / 0.6745)
    np.testing.assert_allclose(metrics.robust_sigma(y), expected, rtol=1.0 / len(y))
    assert metrics.robust_sigma(y) != expected
    # For a normal sample it estimates the standard deviation, to 0.5% with 20,000 draws.
    np.testing.assert_allclose(metrics.robust_sigma(y), 0.15, rtol=0.02)


def test_robust_sigma_where_the_median_deviation_vanishes():
    y = np.array([0.0] * 7 + [1.0] * 2)
    np.testing.assert_allclose(metrics.robust_sigma(y), transcribed(y), rtol=1e-14)
    assert metrics.robust_sigma(y) > 0
    for same in (np.zeros(5), np.full(7, -0.3), np.array([2.0])):
        assert metrics.robust_sigma(same) == 0.0
    assert np.isnan(metrics.robust_sigma(np.zeros(0)))
    assert np.isnan(metrics.robust_sigma(np.array([0.0, np.nan, 1.0])))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "score", [lambda t, q: metrics.robust_sigma(q - t), metrics.r2, metrics.bias], ids=["sigma", "r2", "bias"]
)
def test_jax_and_numpy_agree(score, compiled):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(4, 56))
    p = y + 0.1 * rng.standard_t(2, size=y.shape)
    batched = jax.vmap(score)
    scores = (jax.jit(batched) if compiled else batched)(jnp.asarray(y), jnp.asarray(p))
    assert isinstance(scores, jax.Array)
    assert isinstance(score(y[0], p[0]), np.generic | np.ndarray)
    # float32 rounding of 56 terms of order one.
    np.testing.assert_allclose(scores, [score(y[k], p[k]) for k in range(4)], rtol=1e-5, atol=1e-6)


def test_robust_sigma_of_equal_jax_residuals_is_zero_and_differentiable_elsewhere():
    assert jax.jit(metrics.robust_sigma)(jnp.full(6, 0.25)) == 0.0
    chex.assert_tree_all_finite(jax.grad(metrics.robust_sigma)(jnp.arange(8.0)))


def test_r2_by_hand():
    y = np.array([0.0, 1.0, 2.0])
    assert metrics.r2(y, y) == 1.0
    assert metrics.r2(y, np.full(3, 1.0)) == 0.0
    assert metrics.r2(y, y + 1.0) == 1.0 - 3.0 / 2.0
    assert metrics.r2(np.ones(3), np.zeros(3)) == -np.inf
    assert np.isnan(metrics.r2(np.ones(3), np.ones(3)))


def test_subsets_split_at_minus_one_and_exclude_unknown_metallicity():
    masks = metrics.subset_masks([-1.0, -1.0001, np.nan, 0.2])
    assert tuple(masks) == metrics.SUBSETS
    assert masks["all"].tolist() == [True] * 4
    assert masks["fe_h>=-1"].tolist() == [True, False, False, True]
    assert masks["fe_h<-1"].tolist() == [False, True, False, False]


def test_the_gain_is_paired_by_seed():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(16, 56))
    residual = rng.normal(size=truth.shape)
    residual /= np.array([metrics.robust_sigma(one) for one in residual])[:, None]  # a scatter of 1
    shared = rng.normal(0.3, 0.05, size=(16, 1))
    arrays = truth, truth + (shared - 0.01) * residual, truth + shared * residual
    row = gain_row(*arrays)
    # Identical differences: only float64 rounding of residuals and labels of order one is left of the error.
    assert row["sigma_gain"] == pytest.approx(0.01, abs=1e-15)
    assert row["sigma_gain_err"] < 1e-15
    assert row["sigma_err"] > 0.005
    assert np.isnan(gain_row(*(a[:1] for a in arrays))["sigma_gain_err"])


def gain_row(truth, predicted, reference):
    return metrics.summarise(truth, predicted, fe_h=truth, reference=reference)[0]


@pytest.fixture
def scored():
    rng = np.random.default_rng(3)
    fe_h = np.concatenate(
        [rng.uniform(-0.9, 0.4, size=(16, 48)), rng.uniform(-2.5, -1.1, size=(16, 8))], axis=1
    )
    adapted, zero = fe_h + rng.normal(0.05, 0.1, fe_h.shape), fe_h + rng.normal(0.0, 0.3, fe_h.shape)
    stars = rng.integers(0, 126, size=fe_h.shape)
    return fe_h, adapted, zero, stars


def test_subset_with_enough_stars_is_scored_per_seed(scored):
    fe_h, adapted, zero, stars = scored
    rows = {r["subset"]: r for r in metrics.summarise(fe_h, adapted, fe_h=fe_h, reference=zero, stars=stars)}
    sigmas = np.array([metrics.robust_sigma(adapted[k] - fe_h[k]) for k in range(16)])
    row = rows["all"]
    assert (row["n_seeds"], row["n_stars"], row["n_predictions"], row["pooled"]) == (16, 56, 896, False)
    assert row["n_distinct"] == len(np.unique(stars))
    assert row["sigma"] == pytest.approx(sigmas.mean())
    assert row["sigma_std"] == pytest.approx(sigmas.std(ddof=1))
    assert row["sigma_err"] == pytest.approx(sigmas.std(ddof=1) / 4)
    gains = [metrics.robust_sigma(zero[k] - fe_h[k]) for k in range(16)] - sigmas
    assert row["sigma_gain"] == pytest.approx(gains.mean())
    assert row["sigma_gain_err"] == pytest.approx(gains.std(ddof=1) / 4)


def test_small_subset_is_pooled_with_a_jackknife_error(scored):
    fe_h, adapted, zero, _ = scored
    rows = {r["subset"]: r for r in metrics.summarise(fe_h, adapted, fe_h=fe_h, reference=zero)}
    row, poor = rows["fe_h<-1"], fe_h < -1
    assert (row["pooled"], row["n_stars"], row["n_predictions"]) == (True, 8, 128)
    assert row["sigma"] == pytest.approx(metrics.robust_sigma((adapted - fe_h)[poor]))
    assert row["r2"] == pytest.approx(metrics.r2(fe_h[poor], adapted[poor]))
    # For N independent normal residuals the relative error is 1 / sqrt(2 N) = 6%; allow a factor of two.
    assert 0.03 < row["sigma_err"] / row["sigma"] < 0.12
    assert row["sigma_gain"] > 5 * row["sigma_gain_err"]


def test_jackknife_error_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(4).normal(size=(9, 1))
    where = np.ones((9, 1), dtype=bool)
    mean, std, error = metrics._jackknife(lambda v: float(v.mean()), where, values)
    assert (mean, std, error) == pytest.approx(metrics._over_seeds(values[:, 0]))


def test_without_reference_or_seeds_gain_and_errors_are_nan(scored):
    fe_h, adapted, *_ = scored
    rows = metrics.summarise(fe_h[:1], adapted[:1], fe_h=fe_h[:1])
    for row in rows:
        assert np.isnan(row["sigma_gain"])
        assert np.isfinite(row["sigma"])
        assert np.isnan(row["sigma_err"])


def test_an_empty_subset_scores_nan_without_a_warning():
    fe_h = np.zeros((3, 12))
    row = metrics.summarise(fe_h, fe_h, fe_h=fe_h)[2]
    assert row["n_predictions"] == 0
    assert np.isnan(row["sigma"])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same"):
        metrics.summarise(np.zeros((2, 5)), np.zeros((2, 4)), fe_h=np.zeros((2, 5)))
