"""Known properties of the real libraries, which must be cached: `specjax fetch stellar-libraries`."""

import numpy as np
import pytest

from specjax.catalogues.star_names import common_stars, crossmatch
from specjax.preprocess import to_lamost
from specjax.services import stellar_libraries
from specjax.simulate.grism import degrade
from specjax.surveys import mastar, miles, read, stelib

FOLDER = (
    stellar_libraries.stellar_libraries_folder()
)  # at import, because the tests themselves use an empty cache
pytestmark = pytest.mark.skipif(
    not stellar_libraries.have_stellar_libraries(),
    reason=f"no stellar libraries in {FOLDER}: `specjax fetch stellar-libraries` downloads them (121 MB)",
)


@pytest.fixture(scope="module")
def miles_spectra():
    return miles.read(FOLDER / "miles")


@pytest.fixture(scope="module")
def stelib_spectra():
    return stelib.read(FOLDER / "stelib")


def known(spectra, *labels):
    return np.all([np.isfinite(spectra.meta[label]) for label in labels], axis=0)


def test_miles_has_983_stars_with_labels_for_944(miles_spectra):
    assert len(miles_spectra) == 983
    assert known(miles_spectra, "teff", "logg", "fe_h").sum() == 944
    np.testing.assert_allclose(miles_spectra.wavelength[[0, -1]], [3540.5, 7409.6])


def test_stelib_has_255_spectra_with_labels_for_207_and_gaps_in_65(stelib_spectra):
    assert len(stelib_spectra) == 255
    assert known(stelib_spectra, "teff", "fe_h").sum() == 207
    assert known(stelib_spectra, "teff", "logg", "fe_h").sum() == 203
    inside = (stelib_spectra.wavelength > 4000) & (stelib_spectra.wavelength < 5600)
    assert (stelib_spectra.mask & inside).any(axis=1).sum() == 65
    telescopes, count = np.unique(stelib_spectra.meta["telescope"], return_counts=True)
    assert count.tolist() == [41, 214]
    assert "Siding Spring" in telescopes[0]


def test_117_stars_are_in_both_with_labels_that_agree(miles_spectra, stelib_spectra):
    names = miles_spectra.meta["name"], stelib_spectra.meta["name"]
    assert len(common_stars(*names)) == 117
    i, j = crossmatch(*names)
    difference = miles_spectra.meta["fe_h"][i] - stelib_spectra.meta["fe_h"][j]
    assert np.nanmedian(np.abs(difference)) < 0.07


def test_mastar_has_65_mean_spectra():
    spectra = mastar.read(FOLDER / "mastarhc_v2")
    assert len(spectra) == 65
    np.testing.assert_allclose(spectra.wavelength[[0, -1]], [3631.6, 10322.9], atol=0.1)


def test_the_libraries_are_recognised():
    found = {name: read(FOLDER / name).survey for name in stellar_libraries.FOLDERS}
    assert found == {name: name for name in stellar_libraries.FOLDERS}


@pytest.mark.parametrize("target", ["stelib", "stelib-grism"])
def test_126_targets_reach_the_lamost_grid(stelib_spectra, target):
    spectra = to_lamost(stelib_spectra if target == "stelib" else degrade(stelib_spectra, seed=0))
    assert spectra.survey == target
    teff = spectra.meta["teff"]
    chosen = known(spectra, "teff", "logg", "fe_h") & (teff >= 3800) & (teff <= 7500)
    chosen &= spectra.meta["flag"] == "good"
    assert chosen.sum() == 126
    assert (chosen & (spectra.meta["fe_h"] < -1)).sum() == 18
    typical = np.median(spectra.flux[chosen][~spectra.mask[chosen]])
    assert 0.9 < typical < 1.0  # the continuum is the upper envelope


def test_common_stars_agree_between_the_libraries(miles_spectra, stelib_spectra):
    i, j = crossmatch(miles_spectra.meta["name"], stelib_spectra.meta["name"])
    one, two = to_lamost(miles_spectra[i]), to_lamost(stelib_spectra[j])
    cool = (miles_spectra.meta["teff"][i] > 4500) & (miles_spectra.meta["teff"][i] < 6500)
    both = ~one.mask & ~two.mask
    scatter = [
        np.std((one.flux - two.flux)[row][both[row]]) for row in np.flatnonzero(cool & both.any(axis=1))
    ]
    # Resolutions of 2.5 and 3 A, and tens of km/s apart in places; air taken for vacuum gives over 0.06.
    assert np.median(scatter) < 0.04
