import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_moons
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC

from specjax.report import intervals, metrics

RNG = np.random.default_rng(0)
VALUES = {
    "normal": RNG.normal(size=41),
    "even": RNG.normal(size=20),
    "outliers": np.concatenate([RNG.normal(size=15), [40.0, -60.0]]),
    "ties": np.repeat([0.0, 0.0, 0.0, 1.0, 2.5], 3),
    "two": np.array([0.3, 0.7]),
    "equal": np.full(6, 0.25),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_weighted_scores_are_those_of_repeated_stars(values):
    weights = intervals.star_weights(len(values), samples=60, seed=1)
    truth = np.linspace(-2.0, 0.5, len(values))
    predicted = truth + values
    scores = {
        "sigma": (intervals.weighted_sigma(values, weights), metrics.robust_sigma, (values,)),
        "bias": (intervals.weighted_bias(truth, predicted, weights), metrics.bias, (truth, predicted)),
        "r2": (intervals.weighted_r2(truth, predicted, weights), metrics.r2, (truth, predicted)),
    }
    for name, (weighted, score, arrays) in scores.items():
        expected = np.array([score(*(np.repeat(a, w) for a in arrays)) for w in weights], dtype=float)
        if name == "r2":  # a sample with one distinct star has no spread
            weighted, expected = (np.where(np.isfinite(expected), x, 0.0) for x in (weighted, expected))
        # The same sums in another order, of at most 41 terms: float64 rounding.
        np.testing.assert_allclose(weighted, expected, rtol=1e-11, atol=1e-13, err_msg=name)


def test_samples_without_residuals_and_residuals_that_are_nan_score_nan():
    values, weights = np.arange(4.0), np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    with np.errstate(all="raise"):
        assert np.isnan(intervals.weighted_sigma(values, weights)).tolist() == [True, False]
    values[1] = np.nan
    assert np.isnan(intervals.weighted_sigma(values, weights)).all()
    assert np.isnan(intervals.weighted_bias(values, values, weights)).all()


def test_each_bootstrap_sample_has_as_many_stars():
    weights = intervals.star_weights(30)
    assert weights.shape == (intervals.SAMPLES, 30)
    assert (weights.sum(axis=1) == 30).all()
    # The mean of 1000 counts of variance 29/30 lies within 5 standard errors of 1.
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=5 / np.sqrt(1000))


def test_the_interval_of_unbiased_samples_is_that_of_the_percentiles():
    samples = np.concatenate([-np.arange(1, 501.0), np.arange(1, 501.0)])
    expected = np.quantile(samples, [0.025, 0.975])
    assert intervals.bootstrap_interval(samples, 0.0) == pytest.approx(tuple(expected))
    assert intervals.bootstrap_interval(np.append(samples, np.nan), 0.0) == pytest.approx(tuple(expected))


def test_the_interval_moves_towards_the_estimate_that_most_samples_miss():
    samples = np.random.default_rng(2).normal(size=4000)
    # 69% of the samples lie below an estimate of 1/2, hence z0 = 1/2 and the ends are Phi(1 -+ 1.96).
    low, high = intervals.bootstrap_interval(samples, float(np.quantile(samples, stats.norm.cdf(0.5))))
    expected = np.quantile(samples, stats.norm.cdf([1 - 1.96, 1 + 1.96]))
    assert (low, high) == pytest.approx(tuple(expected), abs=0.01)


@pytest.mark.parametrize("estimate", [-9.0, 9.0])
def test_an_estimate_beyond_all_samples_ends_the_interval(estimate):
    samples = np.random.default_rng(2).normal(size=4000)
    low, high = sorted(intervals.bootstrap_interval(samples, estimate), key=abs)
    assert high == estimate
    assert abs(low) == pytest.approx(abs(np.median(samples)), abs=1e-3)


def test_an_interval_without_scores_is_nan_and_that_of_equal_scores_a_point():
    assert np.isnan(intervals.bootstrap_interval(np.full(3, np.nan), 1.0)).all()
    assert np.isnan(intervals.bootstrap_interval(np.ones(3), np.nan)).all()
    assert intervals.bootstrap_interval(np.ones(3), 1.0) == (1.0, 1.0)


def test_the_corrected_t_test_gives_the_published_example():
    # "Statistical comparison of models using grid search" of the documentation of scikit-learn prints a
    # corrected t of 0.750 and a one-sided p of 0.227 for these two classifiers.
    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    rbf, linear = (
        cross_val_score(SVC(kernel=kernel, random_state=0), x, y, scoring="roc_auc", cv=folds)
        for kernel in ("rbf", "linear")
    )
    t, p = intervals.corrected_t_test(rbf - linear, 10 / 90)
    assert (round(t, 3), round(p / 2, 3)) == (0.750, 0.227)


def test_without_test_stars_the_corrected_t_is_students():
    x = np.random.default_rng(3).normal(0.3, size=12)
    expected = stats.ttest_1samp(x, 0.0)
    assert intervals.corrected_t_test(x, 0.0) == pytest.approx((expected.statistic, expected.pvalue))
    assert intervals.corrected_t_test(x, 0.5)[1] > expected.pvalue
    for short in ([0.1], [0.2, 0.2]):
        assert np.isnan(intervals.corrected_t_test(short, 0.5)).all()
