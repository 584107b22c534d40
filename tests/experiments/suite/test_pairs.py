import numpy as np
import pytest

from experiments.suite.pairs import (
    Ridge,
    mean_over_stars,
    median_errors,
    nearest_ranks,
    partner_ranks,
    sample_errors,
    share_within,
)

RNG = np.random.default_rng(0)


def test_a_copy_is_the_most_similar_whatever_its_length():
    vectors = RNG.normal(size=(20, 8))
    np.testing.assert_array_equal(partner_ranks(3 * vectors, vectors), 1)
    np.testing.assert_array_equal(partner_ranks(-vectors, vectors), 20)


def test_ranks_of_strangers_are_as_by_chance():
    ranks = partner_ranks(RNG.normal(size=(2000, 30)), RNG.normal(size=(2000, 30)))
    assert ranks.mean() == pytest.approx(1000.5, rel=0.05)  # the mean of 2000 uniform ranks errs by 1.3%


def test_equals_come_before_the_partner():
    """A model that maps all spectra to one vector finds nothing."""
    np.testing.assert_array_equal(partner_ranks(np.ones((5, 3)), np.ones((7, 3))), 7)


def test_nearest_leaves_out_what_is_not_valid():
    true = RNG.random((12, 9))
    valid = RNG.random((12, 9)) < 0.7
    np.testing.assert_array_equal(nearest_ranks(true, np.where(valid, true, np.inf), valid), 1)
    noisy = true + 0.2 * RNG.normal(size=true.shape)
    distance = np.array(
        [[((q - t)[ok] ** 2).mean() for t, ok in zip(true, valid, strict=True)] for q in noisy]
    )
    expected = (distance <= np.diagonal(distance)[:, None] + 1e-12).sum(axis=1)
    np.testing.assert_array_equal(nearest_ranks(noisy, true, valid), expected)


def test_shares_grow_with_k_and_have_intervals():
    ranks = np.array([[1, 2, 5, 30], [1, 1, 9, 40]])
    shares = [share_within(ranks, k) for k in (1, 5, 100)]
    assert [share[""] for share in shares] == [0.375, 0.625, 1.0]
    assert shares[0]["_lo"] < 0.375 < shares[0]["_hi"]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = RNG.normal(size=1000)
    found = mean_over_stars(values)
    assert found["_hi"] - found["_lo"] == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.1)  # 1000 samples


def test_errors_of_samples_are_relative_and_leave_out_missing_flux():
    found = sample_errors([[2.0, 1.0, 5.0]], [[1.0, 0.0, 4.0]], np.array([[True, True, False]]))
    np.testing.assert_array_equal(found, [[1.0, np.nan, np.nan]])


def test_medians_leave_out_what_is_missing():
    errors = np.array([[1.0, np.nan, 3.0], [5.0, np.nan, np.nan]])
    np.testing.assert_array_equal(median_errors(errors, axis=0), [3.0, np.nan, 3.0])
    np.testing.assert_array_equal(median_errors(errors, axis=1), [2.0, 5.0])


def test_ridge_recovers_a_linear_map():
    scores = RNG.normal(size=(80, 4))
    source = 1 + scores @ RNG.normal(size=(4, 50))
    target = 2 + scores @ RNG.normal(size=(4, 12))
    fitted = Ridge.fit(source[:60], target[:60])
    # The smallest ridge is a millionth of the largest eigenvalue, and the others are a tenth of it and more.
    np.testing.assert_allclose(fitted(source[60:]), target[60:], atol=1e-2)


def test_ridge_of_noise_is_the_mean():
    target = RNG.normal(size=(60, 5))
    fitted = Ridge.fit(RNG.normal(size=(60, 40)), target)
    spread = fitted(RNG.normal(size=(200, 40))).std(axis=0)
    assert (spread < 0.6 * target.std(axis=0)).all()
