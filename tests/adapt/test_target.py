import numpy as np
import pytest

from specjax.adapt.target import Grid, draw_splits, make_target
from specjax.errors import DataError, SpecjaxError
from specjax.spectra import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, Spectra

FLAGS = [
    "",
    "",
    "masked_fraction",
    "no_coverage",
    "",
    "continuum_failed",
    "masked_fraction",
    "",
    "no_coverage",
]
TRUTH = np.array([0.1, np.nan, -0.3, 0.2, -1.5, 0.0, np.nan, 0.4, np.nan])


def on_grid(wavelength, n=9, has_ivar=True, **meta):
    return Spectra(
        wavelength=wavelength,
        flux=np.full((n, len(wavelength)), np.arange(1.0, n + 1)[:, None]),
        ivar=np.full((n, len(wavelength)), 4.0),
        mask=np.zeros((n, len(wavelength)), bool),
        id=np.array([f"s{k}" for k in range(n)]),
        meta={name: np.array(values) for name, values in meta.items()},
        has_ivar=has_ivar,
    )


@pytest.fixture
def lamost():
    return on_grid(LAMOST_WAVELENGTH, flag=FLAGS)


class TestMakeTarget:
    def test_rows_are_sorted_by_label_and_flag(self, lamost):
        target = make_target("survey", lamost, TRUTH, label="fe_h")
        assert target.labelled.id.tolist() == ["s0", "s4", "s7"]
        np.testing.assert_array_equal(target.truth, [0.1, -1.5, 0.4])
        np.testing.assert_array_equal(target.fe_h, target.truth)
        # too few pixels to score, enough to learn the instrument from
        assert target.unlabelled.id.tolist() == ["s1", "s2", "s6"]
        assert target.refused == {
            "s2": "masked_fraction",
            "s3": "no_coverage",
            "s5": "continuum_failed",
            "s6": "masked_fraction",
            "s8": "no_coverage",
        }
        assert not set(target.labelled.id) & set(target.unlabelled.id)

    def test_rows_carry_their_own_spectra(self, lamost):
        xp = on_grid(GAIA_XP_WAVELENGTH)
        target = make_target("survey", lamost, TRUTH, label="fe_h", xp=xp)
        for part in (target.labelled, target.unlabelled):
            number = np.array([float(name[1:]) + 1 for name in part.id])
            np.testing.assert_array_equal(part.flux[:, 0], number)
            np.testing.assert_array_equal(part.xp_flux[:, 0], number)
            assert part.flux.shape == (3, 1462)
            assert part.xp_valid.shape == (3, 343)
            assert part.xp_valid.all()

    def test_usable_rows_alone_are_labelled_and_the_others_still_serve(self, lamost):
        usable = np.arange(9) < 5
        target = make_target("survey", lamost, TRUTH, label="fe_h", usable=usable)
        assert target.labelled.id.tolist() == ["s0", "s4"]
        assert target.unlabelled.id.tolist() == ["s1", "s2", "s6", "s7"]

    def test_placeholder_ivar_is_not_passed_on(self, lamost):
        target = make_target("survey", lamost, TRUTH, label="fe_h")
        np.testing.assert_array_equal(target.labelled.ivar, np.full((3, 1462), 4.0))
        bare = make_target(
            "survey", on_grid(LAMOST_WAVELENGTH, has_ivar=False, flag=FLAGS), TRUTH, label="fe_h"
        )
        assert bare.labelled.ivar is None
        assert bare.labelled.xp_flux is None

    def test_another_label_has_no_metallicity_unless_it_is_given(self, lamost):
        target = make_target("survey", lamost, 5000 + TRUTH, label="teff")
        assert np.isnan(target.fe_h).all()
        target = make_target("survey", lamost, 5000 + TRUTH, label="teff", fe_h=TRUTH)
        np.testing.assert_array_equal(target.fe_h, [0.1, -1.5, 0.4])

    @pytest.mark.parametrize("truth", [np.full(9, np.nan), np.where(np.array(FLAGS) == "", np.nan, TRUTH)])
    def test_nothing_to_adapt_to(self, lamost, truth):
        with pytest.raises(
            DataError, match="none of 9 spectra has both fe_h and a usable spectrum"
        ) as caught:
            make_target("survey", lamost, truth, label="fe_h")
        assert "\n" not in str(caught.value)


def test_rows_of_a_grid(lamost):
    grid = Grid.of(lamost)
    part = grid[np.array([4, 0])]
    assert len(grid) == 9
    assert part.id.tolist() == ["s4", "s0"]
    np.testing.assert_array_equal(part.flux[:, 0], [5, 1])
    assert part.xp_flux is None


class TestSplits:
    def test_every_star_has_one_part_in_each_seed(self):
        splits = draw_splits(126, seeds=16, train=60, validate=10)
        assert [part.shape for part in (splits.train, splits.validate, splits.test)] == [
            (16, 60),
            (16, 10),
            (16, 56),
        ]
        whole = np.concatenate([splits.train, splits.validate, splits.test], axis=1)
        np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(126), (16, 1)))

    def test_seeds_differ_and_are_drawn_evenly(self):
        splits = draw_splits(126, seeds=200, train=60, validate=10)
        assert len(np.unique(splits.test, axis=0)) == 200
        share = np.bincount(splits.test.ravel(), minlength=126) / 200
        # 56 of 126 each time: binomial with 200 draws, and the largest of 126 deviations is below 4.5 sigma
        np.testing.assert_allclose(share, 56 / 126, atol=4.5 * np.sqrt(0.44 * 0.56 / 200))

    def test_the_split_of_a_seed_does_not_depend_on_how_many_there_are(self):
        few, many = (draw_splits(50, seeds=n, train=20, validate=5) for n in (3, 64))
        for name in ("train", "validate", "test"):
            np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:3])
        one = many[2:3]
        assert len(one) == 1
        np.testing.assert_array_equal(one.test, few.test[2:])

    def test_no_validation_stars(self):
        splits = draw_splits(30, seeds=2, train=10, validate=0)
        assert splits.validate.shape == (2, 0)
        assert splits.test.shape == (2, 20)

    @pytest.mark.parametrize(
        ("n", "seeds", "train", "validate", "message"),
        [
            (126, 16, 9, 10, "9 training stars are too few"),
            (70, 16, 60, 10, "70 labelled stars cannot give 60 to train, 10 to validate and some to test"),
            (30, 16, 60, 10, "30 labelled stars"),
            (126, 0, 60, 10, "0 seeds"),
            (126, -1, 60, 10, "-1 seeds"),
            (126, 16, 60, -5, "-5 to validate"),
        ],
    )
    def test_what_cannot_be_split(self, n, seeds, train, validate, message):
        with pytest.raises(SpecjaxError, match=message) as caught:
            draw_splits(n, seeds=seeds, train=train, validate=validate)
        assert "\n" not in str(caught.value)
