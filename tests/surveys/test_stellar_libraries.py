"""The readers of the stellar libraries, on synthetic files of the same layout."""

import numpy as np
import pytest

from specjax.errors import DataError
from specjax.surveys import mastar, miles, stelib


def test_miles_joins_labels_by_number(miles_folder):
    spectra = miles.read(miles_folder)
    assert spectra.id.tolist() == ["m0001V", "m0002V", "m0003V", "m0005V", "m0006V", "m0007V"]
    assert spectra.flux[:, 0].tolist() == [1, 2, 3, 5, 6, 7]
    assert spectra.meta["name"][-1] == "NGC 7789 859(853) Cl"
    np.testing.assert_array_equal(spectra.meta["teff"], [6024, 5440, np.nan, 13800, 6065, 4544])
    np.testing.assert_array_equal(spectra.meta["logg"], [4.5, 3.89, np.nan, 2.44, 4.41, 2.34])
    np.testing.assert_array_equal(spectra.meta["fe_h"], [-1.44, 0.25, np.nan, np.nan, 0.13, -0.13])


def test_miles_wavelengths_are_in_air_and_the_flux_in_native_byte_order(miles_folder):
    spectra = miles.read(miles_folder)
    np.testing.assert_allclose(spectra.wavelength, 3540.5 + 0.9 * np.arange(50), rtol=1e-15)
    assert spectra.medium == "air"
    assert spectra.flux.dtype.isnative
    assert not spectra.has_ivar


def test_stelib_gaps_are_masked_and_missing_labels_nan(stelib_folder):
    spectra = stelib.read(stelib_folder)
    assert spectra.id.tolist() == ["HD034411", "HD046223", "HD053929lp"]
    assert spectra.meta["name"].tolist() == ["HD034411", "HD046223", "HD053929"]
    assert spectra.mask.sum(axis=1).tolist() == [0, 20, 5]
    np.testing.assert_array_equal(spectra.meta["fe_h"], [0.01, np.nan, np.nan])
    np.testing.assert_array_equal(spectra.meta["teff"], [5845, 49300, np.nan])
    np.testing.assert_allclose(spectra.meta["radial_velocity"], 20.1)
    assert set(spectra.meta["telescope"]) == {"Jacobus Kaptein Telescope"}
    np.testing.assert_allclose(spectra.wavelength[:, 0], [3199.8, 3200.3, 3199.8])
    assert spectra.medium == "air"


def test_mastar_is_logarithmic_in_vacuum_with_ivar(mastar_folder):
    spectra = mastar.read(mastar_folder)
    assert spectra.id.tolist() == ["MaStarHC_00", "MaStarHC_12"]
    np.testing.assert_allclose(np.log10(spectra.wavelength), 3.5601 + 1e-4 * np.arange(40), rtol=1e-14)
    assert spectra.mask[:, :5].all()
    assert not spectra.mask[:, 5:].any()
    assert spectra.has_ivar
    assert spectra.medium == "vacuum"
    assert np.isnan(spectra.meta["fe_h"]).all()


@pytest.mark.parametrize("reader", [miles, stelib, mastar])
def test_a_folder_without_spectra_is_refused_in_one_line(reader, tmp_path):
    with pytest.raises(DataError) as caught:
        reader.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reader", "folder", "pattern"),
    [
        (miles, "miles_folder", "*m0001V.fits"),
        (stelib, "stelib_folder", "*.fits"),
        (mastar, "mastar_folder", "*.gz"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"not a fits file", b"\x1f\x8b broken"])
def test_a_damaged_file_is_named(reader, folder, pattern, content, request):
    place = request.getfixturevalue(folder)
    victim = sorted(place.glob(pattern))[0]
    victim.write_bytes(content)
    with pytest.raises(DataError, match=victim.name):
        reader.read(place)


def test_a_truncated_file_is_named(stelib_folder):
    victim = sorted(stelib_folder.glob("*.fits"))[0]
    victim.write_bytes(victim.read_bytes()[:2900])
    with pytest.raises(DataError, match=victim.name):
        stelib.read(stelib_folder)


def test_a_foreign_parameter_table_is_refused(miles_folder):
    (miles_folder / miles.LABEL_FILE).write_text("name,teff\na,5000\n")
    with pytest.raises(DataError, match="not the MILES parameter table"):
        miles.read(miles_folder)
