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


def splits_of(fe_h, seeds, tested):
    """Test stars of each seed (seeds, tested), and their labels."""
    stars = np.array([np.random.default_rng(k).permutation(len(fe_h))[:tested] for k in range(seeds)])
    return stars, fe_h[stars]


def test_the_gain_is_paired_by_seed_and_by_star():
    rng = np.random.default_rng(2)
    stars, truth = splits_of(rng.normal(size=126), 16, 56)
    residual = rng.normal(size=126)[stars] * rng.uniform(0.2, 0.4, size=(16, 1))
    arrays = truth, truth + 0.9 * residual, truth + residual
    row = metrics.summarise(arrays[0], arrays[1], fe_h=truth, stars=stars, reference=arrays[2])[0]
    # One configuration is a tenth better whatever the sample: the interval of the gain is a tenth as wide.
    width, gain_width = (row[f"{name}_hi"] - row[f"{name}_lo"] for name in ("sigma", "sigma_gain"))
    assert row["sigma_gain"] == pytest.approx(row["sigma"] / 9)
    assert gain_width == pytest.approx(width / 9, rel=1e-6)
    assert row["sigma_gain_lo"] > 0


@pytest.fixture
def scored():
    rng = np.random.default_rng(3)
    fe_h = np.concatenate([rng.uniform(-0.9, 0.4, size=108), rng.uniform(-2.5, -1.1, size=18)])
    stars, truth = splits_of(fe_h, 16, 56)
    adapted, zero = truth + rng.normal(0.05, 0.1, truth.shape), truth + rng.normal(0.0, 0.3, truth.shape)
    return truth, adapted, zero, stars


def test_subset_with_enough_stars_is_scored_per_seed(scored):
    fe_h, adapted, zero, stars = scored
    scores = metrics.summarise(fe_h, adapted, fe_h=fe_h, reference=zero, stars=stars, n_train=56)
    rows = {r["subset"]: r for r in scores}
    sigmas = np.array([metrics.robust_sigma(adapted[k] - fe_h[k]) for k in range(16)])
    row = rows["all"]
    assert (row["n_seeds"], row["n_stars"], row["n_predictions"], row["pooled"]) == (16, 56, 896, False)
    assert row["n_distinct"] == len(np.unique(stars))
    assert row["sigma"] == pytest.approx(sigmas.mean())
    assert row["sigma_std"] == pytest.approx(sigmas.std(ddof=1))
    gains = [metrics.robust_sigma(zero[k] - fe_h[k]) for k in range(16)] - sigmas
    assert row["sigma_gain"] == pytest.approx(gains.mean())
    assert row["sigma_gain_p"] == pytest.approx(metrics.intervals.corrected_t_test(gains, 1.0)[1])
    for name in metrics.SCORES:
        low, high = row[f"{name}_lo"], row[f"{name}_hi"]
        assert low < row[name] < high
        assert row[f"{name}_err"] == pytest.approx((high - low) / 2 / 1.96)


def test_small_subset_is_pooled(scored):
    fe_h, adapted, zero, stars = scored
    rows = {r["subset"]: r for r in metrics.summarise(fe_h, adapted, fe_h=fe_h, reference=zero, stars=stars)}
    row, poor = rows["fe_h<-1"], fe_h < -1
    assert (row["pooled"], row["n_predictions"], row["n_distinct"]) == (True, poor.sum(), 18)
    assert row["sigma"] == pytest.approx(metrics.robust_sigma((adapted - fe_h)[poor]))
    assert row["r2"] == pytest.approx(metrics.r2(fe_h[poor], adapted[poor]))
    assert np.isnan(row["sigma_std"])
    assert np.isnan(row["sigma_gain_p"])
    assert row["sigma_lo"] < row["sigma"] < row["sigma_hi"]
    assert row["sigma_gain_lo"] > 0


def test_more_seeds_on_the_same_stars_do_not_shrink_the_interval():
    # A residual that is a property of the star is the same in every seed: 64 seeds know no more than 4.
    rng = np.random.default_rng(5)
    fe_h, offset = rng.uniform(-0.9, 0.4, size=100), rng.normal(0.0, 0.1, size=100)
    widths = []
    for seeds in (4, 64):
        stars, truth = splits_of(fe_h, seeds, 80)
        row = metrics.summarise(truth, truth + offset[stars], fe_h=truth, stars=stars)[0]
        widths.append(row["sigma_hi"] - row["sigma_lo"])
    assert widths[1] > 0.8 * widths[0]
    # For n independent normal residuals the scatter has a relative error of 1 / sqrt(2 n), here 7%.
    assert widths[1] == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(200), rel=0.4)


def test_without_reference_or_seeds_gain_and_spread_are_nan(scored):
    fe_h, adapted, _, stars = scored
    rows = metrics.summarise(fe_h[:1], adapted[:1], fe_h=fe_h[:1], stars=stars[:1], n_train=50)
    for row in rows:
        for missing in ("sigma_gain", "sigma_gain_lo", "sigma_gain_err", "sigma_gain_p", "sigma_std"):
            assert np.isnan(row[missing])
        assert row["sigma_lo"] <= row["sigma"] <= row["sigma_hi"]


def test_an_empty_subset_scores_nan_without_a_warning():
    fe_h, stars = np.zeros((3, 12)), np.tile(np.arange(12), (3, 1))
    row = metrics.summarise(fe_h, fe_h, fe_h=fe_h, stars=stars)[2]
    assert row["n_predictions"] == row["n_distinct"] == 0
    assert np.isnan(row["sigma"])
    assert np.isnan(row["sigma_lo"])


def test_shapes_must_agree():
    zeros = np.zeros((2, 5))
    with pytest.raises(ValueError, match="same"):
        metrics.summarise(zeros, np.zeros((2, 4)), fe_h=zeros, stars=zeros)
