import json

import numpy as np
import pytest

from specjax.calibration.calibration import (
    FEWEST,
    FEWEST_OF_GROUP,
    VERSION,
    Calibration,
    calibrate,
    cross_scores,
    groups_of,
)
from specjax.calibration.conformal import conformal_quantile
from specjax.calibration.scoring import covered, normal_crps

EDGES = (-1.0,)


def stars(n, seed, error=0.0):
    """Predicted, true and literature labels; residuals grow towards low metallicity."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(-2.5, 0.5, n)
    truth = predicted + 0.1 * np.exp(-0.4 * (predicted + 1)) * rng.standard_t(5, n)
    return predicted, truth, truth + error * rng.normal(size=n)


def coverage(count, n, error=0.0, given=None, seed=0):
    """Coverage of literature labels, 68% and 95%, and of true ones, by `count` calibrations on n stars."""
    found = []
    for number in range(count):
        p, _, literature = stars(n, [seed, number], error)
        new = stars(200, [seed, number, 1], error)
        errors = [None if given is None else np.full(size, given) for size in (n, 200)]
        calibration = calibrate(p, literature, label_error=errors[0], edges=EDGES)
        inside = covered(new[2], calibration.intervals(new[0], label_error=errors[1]))
        true = covered(new[1], calibration.intervals(new[0]))
        found.append([part.mean() for part in (*inside, *true)])
    return np.mean(found, axis=0)


def test_literature_labels_are_covered():
    inner, outer, _, _ = coverage(60, 70)
    # 60 calibrations of 70 stars: the standard error of the mean is 0.007 and 0.003
    assert inner == pytest.approx(0.68, abs=0.03)
    assert 0.94 <= outer <= 0.975  # ceil(0.95 x 71) / 71 = 0.958


def test_with_known_label_errors_the_true_labels_are_covered():
    inner, outer, true, true95 = coverage(40, 200, error=0.15, given=0.15)
    assert (inner, outer) == (pytest.approx(0.68, abs=0.03), pytest.approx(0.955, abs=0.015))
    # Not guaranteed: it rests on the shape of both distributions.
    assert (true, true95) == (pytest.approx(0.68, abs=0.05), pytest.approx(0.94, abs=0.03))
    assert (
        coverage(20, 200, error=0.15)[2] > 0.8
    )  # ignored errors make the intervals too wide for true labels


def test_spread_over_seeds_is_added_in_quadrature():
    """It widens the intervals of the stars on which the seeds disagree, and no other ones."""
    rng = np.random.default_rng(8)
    predicted = rng.uniform(-2.5, 0.5, 2000)
    spread = rng.choice([0.02, 0.3], 2000)
    truth = predicted + 0.1 * rng.standard_t(5, 2000) + spread * rng.normal(size=2000)
    calibration = calibrate(predicted[:200], truth[:200], spread=spread[:200])
    new = covered(truth[200:], calibration.intervals(predicted[200:], spread=spread[200:]))[0]
    for size in (0.02, 0.3):
        # 1800 stars, and 200 scores for both sizes: 0.02 and 0.03; the shapes of both distributions differ
        assert new[spread[200:] == size].mean() == pytest.approx(0.68, abs=0.07)
    assert not calibration.label_errors
    unknown = calibration.intervals(predicted[:2], spread=np.full(2, np.nan))
    np.testing.assert_array_equal(unknown.err, calibration.intervals(predicted[:2]).err)


def test_groups_have_quantiles_of_their_own_where_there_are_enough_stars():
    predicted, _, truth = stars(400, 1)
    calibration = calibrate(predicted, truth, edges=EDGES)
    assert calibration.grouped
    scores, groups = cross_scores(predicted, truth), groups_of(predicted, EDGES)
    for group, factors in enumerate(calibration.factors):
        expected = [conformal_quantile(scores[groups == group], level) for level in (0.68, 0.95)]
        np.testing.assert_allclose(factors, expected)
    few = np.concatenate(
        [np.flatnonzero(groups == 0)[: FEWEST_OF_GROUP - 1], np.flatnonzero(groups == 1)[:100]]
    )
    shared = calibrate(predicted[few], truth[few], edges=EDGES)
    assert shared.counts == (FEWEST_OF_GROUP - 1, 100)
    assert not shared.grouped
    assert shared.factors[0] == shared.factors[1]
    without = calibrate(predicted[few], truth[few])
    assert without.factors == shared.factors[:1]


def test_scores_do_not_depend_on_the_own_residual():
    """The scale of a star is fitted without it: its score is proportional to its residual."""
    predicted, _, truth = stars(60, 2)
    scores = cross_scores(predicted, truth)
    moved = truth.copy()
    moved[7] = predicted[7] + 100 * (truth[7] - predicted[7])
    assert cross_scores(predicted, moved)[7] == pytest.approx(100 * scores[7])


def test_intervals_follow_the_unit_of_the_label():
    predicted, _, truth = stars(80, 3)
    one, other = calibrate(predicted, truth), calibrate(100 * predicted + 5000, 100 * truth + 5000)
    left, right = one.intervals(predicted), other.intervals(100 * predicted + 5000)
    np.testing.assert_allclose(right.err, 100 * left.err, rtol=1e-4)  # the fit stops at a small step
    np.testing.assert_allclose(right.lo95, 100 * left.lo95 + 5000, rtol=1e-4)


def test_intervals_are_nested_and_nan_stays_nan():
    predicted, _, truth = stars(50, 4)
    intervals = calibrate(predicted, truth, edges=EDGES).intervals(np.array([-9.0, -1.0, 0.3, np.nan]))
    ordered = np.stack([intervals.lo95, intervals.lo, intervals.hi, intervals.hi95])[:, :3]
    assert (np.diff(ordered, axis=0) > 0).all()
    np.testing.assert_allclose(intervals.err[:3], (intervals.hi - intervals.lo)[:3] / 2)
    assert np.isnan(np.array(intervals)[:, 3]).all()
    assert list(intervals.columns("teff")) == ["teff_err", "teff_lo", "teff_hi", "teff_lo95", "teff_hi95"]


@pytest.mark.parametrize("n", [FEWEST, 18, 19])
def test_few_stars(n):
    """19 scores are the fewest with a conformal quantile of 95%."""
    predicted, _, truth = stars(n, 5)
    calibration = calibrate(predicted, truth, edges=EDGES)
    assert calibration.extrapolated == (n < 19)
    assert np.isfinite(calibration.factors).all()
    assert calibration.factors[0][1] >= cross_scores(predicted, truth).max()
    assert calibrate(predicted[: FEWEST - 1], truth[: FEWEST - 1]) is None


def test_predictions_that_are_not_finite_are_left_out():
    predicted, _, truth = stars(40, 6)
    with_nan = np.concatenate([predicted, [np.nan, np.inf]])
    assert calibrate(with_nan, np.concatenate([truth, [0, 0]])) == calibrate(predicted, truth)


def test_json_and_versions():
    predicted, _, truth = stars(100, 7)
    calibration = calibrate(predicted, truth, label_error=np.full(100, 0.05), edges=EDGES)
    content = json.loads(json.dumps(calibration.to_json()))
    assert Calibration.from_json(content) == calibration
    assert calibration.summary == "of the true label, calibrated on 100 stars"
    assert Calibration.from_json(None) is None
    assert Calibration.from_json({**content, "version": VERSION + 1}) is None


def test_crps_of_a_normal_distribution_is_that_of_its_draws():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(0.3, 0.2, 200_000) for _ in range(2))
    for truth in (0.1, 0.3, 1.0):
        drawn = np.abs(x - truth).mean() - 0.5 * np.abs(x - y).mean()
        found = normal_crps(np.array(truth), np.array(0.3), np.array(0.2))
        assert found == pytest.approx(drawn, abs=2e-3)  # 0.2 / sqrt(200000) = 5e-4
    assert normal_crps(np.array(1.0), np.array(0.4), np.array(1e-9)) == pytest.approx(0.6)
