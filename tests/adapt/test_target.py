import dataclasses

import numpy as np
import pytest

from specjax.adapt.target import make_target, make_targets
from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH

FLAGS = [
    "good",
    "good",
    "masked_fraction",
    "no_coverage",
    "good",
    "continuum_failed",
    "masked_fraction",
    "good",
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
        for part in (target.labelled, target.unlabelled, target.unlabelled_xp):
            number = np.array([float(name[1:]) + 1 for name in part.id])
            np.testing.assert_array_equal(part.flux[:, 0], number)
        assert target.labelled.flux.shape == target.unlabelled.flux.shape == (3, 1462)
        assert target.unlabelled_xp.flux.shape == (3, 343)
        np.testing.assert_array_equal(target.unlabelled.id, target.unlabelled_xp.id)

    def test_usable_rows_alone_are_labelled_and_the_others_still_serve(self, lamost):
        usable = np.arange(9) < 5
        target = make_target("survey", lamost, TRUTH, label="fe_h", usable=usable)
        assert target.labelled.id.tolist() == ["s0", "s4"]
        assert target.unlabelled.id.tolist() == ["s1", "s2", "s6", "s7"]

    def test_uncertainties_and_their_absence_are_passed_on(self, lamost):
        target = make_target("survey", lamost, TRUTH, label="fe_h")
        np.testing.assert_array_equal(target.labelled.ivar, np.full((3, 1462), 4.0))
        assert target.labelled.has_ivar
        bare = make_target(
            "survey", on_grid(LAMOST_WAVELENGTH, has_ivar=False, flag=FLAGS), TRUTH, label="fe_h"
        )
        assert not bare.labelled.has_ivar
        assert bare.unlabelled_xp is None

    def test_another_label_has_no_metallicity_unless_it_is_given(self, lamost):
        target = make_target("survey", lamost, 5000 + TRUTH, label="teff")
        assert np.isnan(target.fe_h).all()
        target = make_target("survey", lamost, 5000 + TRUTH, label="teff", fe_h=TRUTH)
        np.testing.assert_array_equal(target.fe_h, [0.1, -1.5, 0.4])

    @pytest.mark.parametrize(
        "truth", [np.full(9, np.nan), np.where(np.array(FLAGS) == "good", np.nan, TRUTH)]
    )
    def test_nothing_to_adapt_to(self, lamost, truth):
        with pytest.raises(
            DataError, match="none of 9 spectra has both fe_h and a usable spectrum"
        ) as caught:
            make_target("survey", lamost, truth, label="fe_h")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("weight", [np.ones(2), np.array([1.0, 0.0, 1.0]), np.array([1.0, np.nan, 1.0])])
    def test_weights_that_make_no_sense_are_refused(self, lamost, weight):
        target = make_target("survey", lamost, TRUTH, label="fe_h")
        with pytest.raises(DataError, match="survey: weights must be one positive number"):
            dataclasses.replace(target, weight=weight)


class TestMakeTargets:
    def test_a_star_with_another_label_is_not_unlabelled(self, lamost):
        teff = np.where(np.isnan(TRUTH), np.nan, 5000.0)
        teff[[0, 1]] = np.nan, 6000.0
        metal, hot = make_targets("survey", lamost, {"fe_h": TRUTH, "teff": teff}, fe_h=TRUTH)
        assert metal.labelled.id.tolist() == ["s0", "s4", "s7"]
        assert hot.labelled.id.tolist() == ["s1", "s4", "s7"]
        np.testing.assert_array_equal(hot.fe_h, [np.nan, -1.5, 0.4])
        for target in (metal, hot):
            assert target.unlabelled.id.tolist() == ["s2", "s6"]
            assert target.refused == metal.refused
        # one label: as ever
        (alone,) = make_targets("survey", lamost, {"fe_h": TRUTH})
        expected = make_target("survey", lamost, TRUTH, label="fe_h")
        assert alone.unlabelled.id.tolist() == expected.unlabelled.id.tolist()
        np.testing.assert_array_equal(alone.fe_h, expected.fe_h)
