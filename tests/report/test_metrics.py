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
    """The definition, term by term in Python floats."""
    d = [float(v) - float(np.median(y)) for v in y]
    m = float(np.median(np.abs(d))) / 0.6745
    if m < 1e-20:
        m = sum(abs(v) for v in d) / len(d) / 0.8
    if m < 1e-20:
        return 0.0
    inside = [(v, (v / (6 * m)) ** 2) for v in d if abs(v / (6 * m)) <= 1]
    den = sum((1 - u2) * (1 - 5 * u2) for _, u2 in inside)
    return (len(d) * sum(v**2 * (1 - u2) ** 4 for v, u2 in inside) / (den * (den - 1))) ** 0.5


# Multiples of 1/8 up to 1000 shift and scale by powers of two without rounding, so the laws hold exactly.
residuals = hnp.arrays(np.float64, st.integers(2, 60), elements=st.integers(-8000, 8000).map(lambda i: i / 8))


@given(residuals)
def test_robust_sigma_is_its_definition(y):
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
def test_one_star_in_twenty_far_off_hardly_matters(seed, far):
    y = np.random.default_rng(seed).normal(size=100)
    spoiled = np.where(np.arange(100) < 5, far, y)
    # Five outliers of a hundred move the median by about 0.06 and the MAD by 5%; 0.3 is five times that.
    assert abs(metrics.robust_sigma(spoiled) - metrics.robust_sigma(y)) < 0.3


def test_robust_sigma_meets_astropy_in_the_limit():
    y = np.random.default_rng(0).normal(scale=0.15, size=20_000)
    # Astropy divides by D^2 where this divides by D (D - 1): they part by 1 / (2 D), and D is about 0.7 n.
    expected = biweight_scale(y, c=6.0 / 0.6745)
    np.testing.assert_allclose(metrics.robust_sigma(y), expected, rtol=1.0 / len(y))
    assert metrics.robust_sigma(y) != expected
    # Of a normal sample it is the standard deviation, to the 0.5% that 20,000 draws scatter by.
    np.testing.assert_allclose(metrics.robust_sigma(y), 0.15, rtol=0.02)


def test_robust_sigma_where_the_median_deviation_vanishes():
    y = np.array([0.0] * 7 + [1.0] * 2)
    np.testing.assert_allclose(metrics.robust_sigma(y), transcribed(y), rtol=1e-14)
    assert metrics.robust_sigma(y) > 0
    for same in (np.zeros(5), np.full(7, -0.3), np.array([2.0])):
        assert metrics.robust_sigma(same) == 0.0
    assert np.isnan(metrics.robust_sigma(np.zeros(0)))
    assert np.isnan(metrics.robust_sigma(np.array([0.0, np.nan, 1.0])))


def test_jax_and_numpy_agree_under_vmap():
    rng = np.random.default_rng(1)
    y = rng.normal(size=(4, 56))
    p = y + 0.1 * rng.standard_t(2, size=y.shape)
    for score in (lambda t, q: metrics.robust_sigma(q - t), metrics.r2, metrics.bias):
        batched = jax.jit(jax.vmap(score))(jnp.asarray(y), jnp.asarray(p))
        # float32 rounding of 56 terms of order one.
        np.testing.assert_allclose(batched, [score(y[k], p[k]) for k in range(4)], rtol=1e-5, atol=1e-6)


def test_robust_sigma_of_equal_residuals_is_zero_and_differentiable_elsewhere():
    assert jax.jit(metrics.robust_sigma)(jnp.full(6, 0.25)) == 0.0
    assert np.isfinite(jax.grad(metrics.robust_sigma)(jnp.arange(8.0))).all()


def test_r2_by_hand():
    y = np.array([0.0, 1.0, 2.0])
    assert metrics.r2(y, y) == 1.0
    assert metrics.r2(y, np.full(3, 1.0)) == 0.0
    assert metrics.r2(y, y + 1.0) == 1.0 - 3.0 / 2.0
    assert metrics.r2(np.ones(3), np.zeros(3)) == -np.inf
    assert np.isnan(metrics.r2(np.ones(3), np.ones(3)))


def test_subsets_split_at_minus_one_and_leave_out_unknown():
    masks = metrics.subset_masks([-1.0, -1.0001, np.nan, 0.2])
    assert tuple(masks) == metrics.SUBSETS
    assert masks["all"].tolist() == [True] * 4
    assert masks["fe_h>=-1"].tolist() == [True, False, False, True]
    assert masks["fe_h<-1"].tolist() == [False, True, False, False]


def test_paired_gain_sees_through_what_seeds_share():
    rng = np.random.default_rng(2)
    shared = rng.normal(0.3, 0.05, size=16)
    gain, error = metrics.paired_gain(shared, shared - 0.01)
    # Identical differences: only float64 rounding of 0.3 is left of the error.
    assert gain == pytest.approx(0.01, abs=1e-15)
    assert error < 1e-15
    assert np.isnan(metrics.paired_gain([0.2], [0.1])[1])


@pytest.fixture
def scored():
    rng = np.random.default_rng(3)
    fe_h = np.concatenate(
        [rng.uniform(-0.9, 0.4, size=(16, 48)), rng.uniform(-2.5, -1.1, size=(16, 8))], axis=1
    )
    adapted, zero = fe_h + rng.normal(0.05, 0.1, fe_h.shape), fe_h + rng.normal(0.0, 0.3, fe_h.shape)
    stars = rng.integers(0, 126, size=fe_h.shape)
    return fe_h, adapted, zero, stars


def test_summary_of_subsets_that_every_seed_has(scored):
    fe_h, adapted, zero, stars = scored
    rows = {r["subset"]: r for r in metrics.summarise(fe_h, adapted, fe_h=fe_h, reference=zero, stars=stars)}
    sigmas = np.array([metrics.robust_sigma(adapted[k] - fe_h[k]) for k in range(16)])
    row = rows["all"]
    assert (row["n_seeds"], row["n_stars"], row["n_predictions"], row["pooled"]) == (16, 56, 896, False)
    assert row["n_distinct"] == len(np.unique(stars))
    assert row["sigma"] == pytest.approx(sigmas.mean())
    assert row["sigma_std"] == pytest.approx(sigmas.std(ddof=1))
    assert row["sigma_err"] == pytest.approx(sigmas.std(ddof=1) / 4)
    zeros = [metrics.robust_sigma(zero[k] - fe_h[k]) for k in range(16)]
    assert (row["sigma_gain"], row["sigma_gain_err"]) == pytest.approx(metrics.paired_gain(zeros, sigmas))


def test_summary_of_a_thin_subset_is_pooled_with_a_jackknife(scored):
    fe_h, adapted, zero, _ = scored
    rows = {r["subset"]: r for r in metrics.summarise(fe_h, adapted, fe_h=fe_h, reference=zero)}
    row, poor = rows["fe_h<-1"], fe_h < -1
    assert (row["pooled"], row["n_stars"], row["n_predictions"]) == (True, 8, 128)
    assert row["sigma"] == pytest.approx(metrics.robust_sigma((adapted - fe_h)[poor]))
    assert row["r2"] == pytest.approx(metrics.r2(fe_h[poor], adapted[poor]))
    # Of N independent normal residuals the relative error is 1 / sqrt(2 N) = 6%, to half of it.
    assert 0.03 < row["sigma_err"] / row["sigma"] < 0.12
    assert row["sigma_gain"] > 5 * row["sigma_gain_err"]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(4).normal(size=(9, 1))
    where = np.ones((9, 1), dtype=bool)
    mean, std, error = metrics._jackknife(lambda v: float(v.mean()), where, values)
    assert (mean, std, error) == pytest.approx(metrics._over_seeds(values[:, 0]))


def test_no_reference_no_gain_and_one_seed_no_error(scored):
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
