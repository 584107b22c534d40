import dataclasses

import numpy as np
import pytest

from specjax.adapt.selection import Candidates, select, select_without


def made(seeds, count, stars, *, seed=0, scale=1.0):
    """Candidates whose residuals are noise of the same size, and the labels of the stars."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(seeds, stars))
    unseen = truth[:, None] + scale * rng.standard_t(4, size=(seeds, count, stars))
    nothing = np.zeros(count)
    return Candidates(nothing.astype(int), nothing.astype(int), nothing, nothing, unseen), truth


def without(candidates, truth, weight, star):
    """Select by all stars but one, by removing it."""
    fewer = dataclasses.replace(candidates, unseen=np.delete(candidates.unseen, star, axis=2))
    return select(
        fewer, np.delete(truth, star, axis=1), None if weight is None else np.delete(weight, star, axis=1)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_star_is_left_out_as_if_it_were_not_there(weighted):
    candidates, truth = made(5, 12, 9)
    weight = np.random.default_rng(1).uniform(0.1, 3.0, truth.shape) if weighted else None
    found = select_without(candidates, truth, weight)
    assert found.shape == truth.shape
    assert (found != select(candidates, truth, weight)[:, None]).any()  # or nothing is tested
    for star in range(9):
        np.testing.assert_array_equal(found[:, star], without(candidates, truth, weight, star))


def test_the_model_as_it_is_remains_unless_another_candidate_is_better():
    candidates, truth = made(2, 4, 6)
    same = dataclasses.replace(candidates, unseen=np.repeat(candidates.unseen[:, :1], 4, axis=1))
    assert not select(same, truth).any()
    assert not select_without(same, truth).any()


def test_diverged_training_is_never_selected():
    candidates, truth = made(2, 4, 6, scale=10.0)
    unseen = candidates.unseen.copy()
    unseen[:, 1:] = truth[:, None]  # the best, but for one star
    unseen[:, 1, 2], unseen[:, 2, 2] = np.nan, np.inf
    diverged = dataclasses.replace(candidates, unseen=unseen)
    assert (select(diverged, truth) == 3).all()
    assert (select_without(diverged, truth) == 3).all()


def test_stars_that_are_left_out_have_residuals_like_new_ones():
    """All candidates are equally good, so that what makes one the best is chance."""
    candidates, truth = made(400, 30, 40)
    seeds = np.arange(400)
    selected = candidates.unseen[seeds, select(candidates, truth)]
    place = select_without(candidates, truth)[:, None]
    left_out = np.take_along_axis(candidates.unseen, place, axis=1)[:, 0]
    expected = np.abs(candidates.unseen - truth[:, None]).mean()
    # 16,000 residuals of a t distribution: the standard error of the mean is 0.8%
    assert np.abs(left_out - truth).mean() == pytest.approx(expected, rel=0.03)
    assert np.abs(selected - truth).mean() < 0.85 * expected
