import dataclasses

import numpy as np
import pytest

from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import draw_splits
from specjax.adapt.uncertainties import (
    calibrate_mean,
    calibrate_seeds,
    few_stars,
    intervals_of,
    intervals_of_mean,
    intervals_of_seeds,
    signal_to_noise,
    unseen_of_seeds,
)
from specjax.calibration.scoring import covered
from tests import synthetic

SPLITS = draw_splits(40, seeds=3, train=20, validate=4)


def result(target, splits=SPLITS, sigma=0.1, seed=0):
    """Predictions that are exact for the stars that were seen, and have errors for all others."""
    rng = np.random.default_rng(seed)
    predictions = target.truth + sigma * rng.normal(size=(len(splits), 40))
    np.put_along_axis(predictions, splits.train, target.truth[splits.train], axis=1)
    unseen = target.truth[splits.unseen] + sigma * rng.normal(size=splits.unseen.shape)
    configuration = Configuration.parse("lora4")
    return AdaptationResult(
        configuration=configuration, predictions=predictions, unseen=unseen, adapters={}, chosen={}
    )


def test_a_seed_is_calibrated_on_its_own_unseen_stars():
    target, found = synthetic.target(), result(synthetic.target())
    before = calibrate_seeds(target, SPLITS, found)
    assert [sum(each.counts) for each in before] == [24, 24, 24]
    tested = np.setdiff1d(np.arange(40), SPLITS.unseen[0])
    changed = target.truth.copy()
    changed[tested] += 50.0
    after = calibrate_seeds(dataclasses.replace(target, truth=changed), SPLITS, found)
    assert after[0] == before[0]  # the labels of its test stars are not used
    assert after[1] != before[1]


def test_intervals_of_test_stars():
    target, found = synthetic.target(), result(synthetic.target())
    intervals = intervals_of_seeds(target, SPLITS, found)
    assert intervals.lo.shape == (3, 16)
    predicted = np.take_along_axis(found.predictions, SPLITS.test, axis=1)
    np.testing.assert_allclose((intervals.lo + intervals.hi) / 2, predicted)
    inner, outer = covered(target.truth[SPLITS.test], intervals)
    assert 0.4 < inner.mean() < 0.9
    assert outer.mean() > 0.85


def test_the_mean_is_calibrated_on_what_no_seed_has_seen():
    """Every star counts once, with what each seed predicts for it unseen."""
    target, found = synthetic.target(), result(synthetic.target())
    mean = unseen_of_seeds(SPLITS, found.predictions, found.unseen).mean(axis=0)
    assert (np.abs(mean - target.truth) > 1e-6).all()  # the training stars are exact where they were seen
    star = SPLITS.train[0][3]
    single = []
    for seed in range(3):
        place = np.flatnonzero(SPLITS.unseen[seed] == star)
        single.append(found.unseen[seed][place[0]] if place.size else found.predictions[seed][star])
    assert mean[star] == pytest.approx(np.mean(single))
    assert sum(calibrate_mean(target, SPLITS, found).counts) == 40
    assert sum(calibrate_mean(target, SPLITS, found, but=np.arange(7)).counts) == 33


def test_intervals_of_a_mean_do_not_use_the_stars_they_are_for():
    target = synthetic.target()
    splits = SPLITS.repeated(3)
    found = result(target, splits)
    mean = dataclasses.replace(
        found, predictions=found.predictions.mean(axis=0, keepdims=True), of_seeds=found.predictions
    )
    test = splits.test[0]
    before = intervals_of_mean(target, splits, mean, test)
    changed = target.truth.copy()
    changed[test] += 50.0
    after = intervals_of_mean(dataclasses.replace(target, truth=changed), splits, mean, test)
    np.testing.assert_array_equal(before.lo, after.lo)
    assert before.lo.shape == (1, 16)


def test_label_errors_widen_what_is_compared_with_literature_labels():
    target = synthetic.target()
    found = result(target)
    with_errors = dataclasses.replace(target, truth_error=np.where(np.arange(40) % 2, 0.3, 0.0))
    calibration = calibrate_mean(with_errors, SPLITS, found)
    assert calibration.label_errors
    assert "true label" in calibration.summary
    half = intervals_of(with_errors, calibration, np.arange(40), target.truth).err
    assert half[1::2].min() > half[::2].max()


def test_signal_to_noise_is_that_of_the_good_pixels():
    labelled = synthetic.target().labelled
    ivar = np.full(labelled.flux.shape, 400.0)
    mask = labelled.mask.copy()
    mask[0] = True
    known = dataclasses.replace(labelled, ivar=ivar, mask=mask, has_ivar=True)
    found = signal_to_noise(known)
    assert np.isnan(found[0])
    good = ~mask[1]
    assert found[1] == pytest.approx(np.median(20 * labelled.flux[1][good]))
    assert np.isnan(signal_to_noise(dataclasses.replace(known, has_ivar=False))).all()


def test_few_stars_are_reported():
    target, found = synthetic.target(), result(synthetic.target())
    (line,) = few_stars(target, [calibrate_mean(target, SPLITS, found)])
    assert "on one side of predicted [Fe/H] = -1" in line
    small = calibrate_mean(target, SPLITS, found, but=np.arange(25))
    assert any("extrapolated from 15" in line for line in few_stars(target, [small, None]))
    assert few_stars(target, [None]) == []
