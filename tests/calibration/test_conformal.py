import numpy as np
import pytest
from crepes import ConformalRegressor
from hypothesis import given
from hypothesis import strategies as st

from specjax.calibration.conformal import conformal_quantile, group_quantiles

LEVELS = (0.5, 0.68, 0.9, 0.95)


def drawn(n, seed=0):
    """Residuals, scales and groups of n calibration stars, all of which differ."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(4, n), np.exp(rng.normal(size=n)), rng.integers(0, 3, n)


@pytest.mark.parametrize("level", LEVELS)
class TestAgainstCrepes:
    """`crepes` implements the same three regressors.

    Numbers of stars are those for which level (n + 1) is not whole: crepes has no margin for rounding.
    """

    @pytest.mark.parametrize("n", [20, 57, 198])
    def test_plain(self, n, level):
        residual, _, _ = drawn(n)
        ends = ConformalRegressor().fit(residual).predict_int(np.zeros(3), confidence=level)
        half = conformal_quantile(np.abs(residual), level)
        np.testing.assert_allclose(ends, np.tile([-half, half], (3, 1)), rtol=1e-12)

    @pytest.mark.parametrize("n", [20, 57, 198])
    def test_normalised(self, n, level):
        residual, scale, _ = drawn(n)
        new = np.array([0.2, 1.0, 7.0])
        fitted = ConformalRegressor().fit(residual, sigmas=scale)
        ends = fitted.predict_int(np.ones(3), sigmas=new, confidence=level)
        half = conformal_quantile(np.abs(residual) / scale, level) * new
        np.testing.assert_allclose(ends, np.stack([1 - half, 1 + half], axis=1), rtol=1e-12)

    def test_by_group(self, level):
        residual, scale, groups = drawn(198)
        quantiles = group_quantiles(np.abs(residual) / scale, groups, level, count=3)
        fitted = ConformalRegressor().fit(residual, sigmas=scale, bins=groups)
        ends = fitted.predict_int(np.zeros(3), sigmas=np.ones(3), bins=np.arange(3), confidence=level)
        np.testing.assert_allclose(ends[:, 1], quantiles, rtol=1e-12)


@given(st.integers(1, 60), st.floats(0.05, 0.99), st.integers(0, 10_000))
def test_is_the_smallest_score_with_enough_below_it(n, level, seed):
    scores = np.random.default_rng(seed).exponential(size=n)
    found = conformal_quantile(scores, level)
    enough = level * (n + 1) - 1e-9
    if np.isinf(found):
        assert n < enough
    else:
        assert (scores <= found).sum() >= enough > (scores < found).sum()


@pytest.mark.parametrize("n", [19, 20, 39, 70])
def test_coverage_is_at_least_the_level_and_little_more(n):
    """Each of n + 1 exchangeable scores against the quantile of the others: no chance is involved."""
    scores = np.random.default_rng(n).exponential(size=n + 1)
    inside = [scores[k] <= conformal_quantile(np.delete(scores, k), 0.95) for k in range(n + 1)]
    assert 0.95 - 1e-12 <= np.mean(inside) < 0.95 + 1 / (n + 1)


def test_groups_share_a_quantile_if_one_of_them_is_too_small():
    scores = np.arange(1.0, 101.0)
    groups = (scores > 30).astype(int)
    own = group_quantiles(scores, groups, 0.68, count=2, fewest=30)
    assert own.tolist() == [conformal_quantile(scores[:30], 0.68), conformal_quantile(scores[30:], 0.68)]
    shared = group_quantiles(scores, groups, 0.68, count=2, fewest=31)
    assert shared.tolist() == [conformal_quantile(scores, 0.68)] * 2
