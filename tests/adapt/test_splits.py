import numpy as np
import pytest

from specjax.adapt.splits import Splits, default_sizes, describe_sizes, draw_splits
from specjax.errors import SpecjaxError


def test_every_star_has_one_part_in_each_seed():
    splits = draw_splits(126, seeds=16, train=60, validate=10)
    assert [part.shape for part in (splits.train, splits.validate, splits.test)] == [
        (16, 60),
        (16, 10),
        (16, 56),
    ]
    whole = np.concatenate([splits.train, splits.validate, splits.test], axis=1)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(126), (16, 1)))


def test_seeds_differ_and_are_drawn_evenly():
    splits = draw_splits(126, seeds=200, train=60, validate=10)
    assert len(np.unique(splits.test, axis=0)) == 200
    share = np.bincount(splits.test.ravel(), minlength=126) / 200
    # 56 of 126 each time: binomial with 200 draws, and the largest of 126 deviations is below 4.5 sigma
    np.testing.assert_allclose(share, 56 / 126, atol=4.5 * np.sqrt(0.44 * 0.56 / 200))


def test_the_split_of_a_seed_does_not_depend_on_how_many_there_are():
    few, many = (draw_splits(50, seeds=n, train=20, validate=5) for n in (3, 64))
    for name in ("train", "validate", "test"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3])
    one = many[2:3]
    assert len(one) == 1
    np.testing.assert_array_equal(one.test, few.test[2:])


def test_seeds_are_numbered_from_the_first():
    later = draw_splits(40, seeds=2, train=20, validate=4, first_seed=7)
    np.testing.assert_array_equal(later.seeds, [7, 8])
    np.testing.assert_array_equal(later.repeated(3).seeds, [7, 8, 9])
    many = draw_splits(40, seeds=9, train=20, validate=4)
    np.testing.assert_array_equal(later.test, many.test[7:])
    np.testing.assert_array_equal(many[7:].seeds, later.seeds)


def test_no_validation_stars():
    splits = draw_splits(30, seeds=2, train=10, validate=0)
    assert splits.validate.shape == (2, 0)
    assert splits.test.shape == (2, 20)


@pytest.mark.parametrize(
    ("n", "seeds", "train", "validate", "message"),
    [
        (126, 16, 9, 10, "9 training stars are too few"),
        (70, 16, 60, 10, "70 .* too few for 60 training, 10 validation and at least one test star"),
        (30, 16, 60, 10, "30 labelled stars are too few"),
        (126, 0, 60, 10, "0 seeds"),
        (126, -1, 60, 10, "-1 seeds"),
        (126, 16, 60, -5, "-5 validation"),
    ],
)
def test_what_cannot_be_split(n, seeds, train, validate, message):
    with pytest.raises(SpecjaxError, match=message) as caught:
        draw_splits(n, seeds=seeds, train=train, validate=validate)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [{}, {"train": 30}, {"validate": 0}, {"validate": 5}])
def test_default_sizes_leave_a_star_to_test_and_grow_with_the_stars(given):
    before = (0, 0)
    for n in range(11, 300):
        if n < given.get("train", 10) + given.get("validate", 0) + 1:
            continue
        sizes = default_sizes(n, **given)
        draw_splits(n, seeds=1, train=sizes[0], validate=sizes[1])
        assert all(now >= then for now, then in zip(sizes, before, strict=True))
        assert sizes[0] == given.get("train", sizes[0])
        before = sizes
    assert before == (given.get("train", 60), given.get("validate", 10))


def test_from_a_hundred_stars_on_the_sizes_are_fixed_and_join_the_shares():
    assert default_sizes(100) == default_sizes(99_999) == (60, 10)
    assert default_sizes(99) == (59, 10)
    assert default_sizes(76) == (46, 8)


def test_a_small_test_set_is_reported_with_the_width_of_the_intervals():
    large = describe_sizes(draw_splits(126, seeds=16, train=60, validate=10))
    assert large == "60 training, 10 validation and 56 test stars per split"
    small = describe_sizes(draw_splits(64, seeds=16, train=38, validate=6))
    assert small.startswith("38 training, 6 validation and 20 test stars per split: few to test")
    assert "about 20%" in small  # 2 / sqrt(64), to tens: all 64 stars are tested by some seed
    one = describe_sizes(draw_splits(64, seeds=1, train=38, validate=6))
    assert "about 40%" in one  # 2 / sqrt(20)


def test_predictions_are_placed_at_their_test_stars():
    rows = np.array([[2, 0], [1, 3]])
    splits = Splits(train=rows, validate=rows, test=rows)
    tested = np.array([[20.0, 0.0], [1.0, 3.0]])
    whole = splits.to_all_stars(tested, 4)
    np.testing.assert_array_equal(whole, [[0, np.nan, 20, np.nan], [np.nan, 1, np.nan, 3]])
    np.testing.assert_array_equal(splits.of_test_stars(whole), tested)
    np.testing.assert_array_equal(splits.of_test_stars(np.arange(4.0)), rows)
