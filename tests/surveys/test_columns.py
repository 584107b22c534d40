import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from specjax.errors import DataError
from specjax.surveys import read
from specjax.surveys.registry import is_undeclared

GRID = 4000.0 + np.arange(20)


@pytest.mark.parametrize("suffix", [".csv", ".ecsv"])
def test_one_spectrum_in_columns(tmp_path, suffix):
    path = tmp_path / f"star{suffix}"
    flux = MaskedColumn(np.ones(20), mask=np.arange(20) == 3)
    Table({"wavelength": GRID, "flux": flux, "flux_error": np.full(20, 0.5)}).write(path)
    spectra = read(path, wavelength_medium="air")
    assert spectra.id.tolist() == ["star"]
    assert spectra.medium == "air"
    assert np.flatnonzero(spectra.mask[0]).tolist() == [3]
    np.testing.assert_array_equal(spectra.ivar[0, 4:], 4.0)


@pytest.mark.parametrize("error", ["err", "ERROR", "sigma", "e_flux", "uncertainty"])
def test_columns_may_have_their_usual_names(tmp_path, error):
    path = tmp_path / "star.csv"
    Table({"WAVE_AIR": GRID, "Flux": np.ones(20), error: np.full(20, 0.5)}).write(path)
    spectra = read(path)
    assert spectra.medium == "air"
    assert not is_undeclared(path)
    np.testing.assert_array_equal(spectra.ivar, np.full((1, 20), 4.0))
    with pytest.raises(DataError, match="WAVE_AIR is in air, not in vacuum"):
        read(path, wavelength_medium="vacuum")
    Table({"loglam": np.log10(GRID), "flux": np.ones(20)}).write(path, overwrite=True)
    np.testing.assert_allclose(read(path).wavelength, GRID, rtol=1e-12)


def test_the_unit_of_a_column_is_honoured(tmp_path):
    path = tmp_path / "star.ecsv"
    Table({"wavelength": GRID / 10 * u.nm, "flux": np.ones(20), "mask": np.arange(20) < 2}).write(path)
    spectra = read(path)
    np.testing.assert_allclose(spectra.wavelength, GRID, rtol=1e-14)
    assert spectra.mask[0].sum() == 2
    with pytest.raises(DataError, match="unit is nm, not um"):
        read(path, wavelength_unit="um")


@pytest.mark.parametrize("prefix", ["", "flux_"])
def test_one_spectrum_per_row(tmp_path, prefix):
    path = tmp_path / "stars.csv"
    table = {"id": ["007", "008"], "teff": [5000.0, 6000.0]}
    Table(table | {f"{prefix}{w:.1f}": [w, 2 * w] for w in GRID}).write(path)
    spectra = read(path)
    assert spectra.id.tolist() == ["007", "008"]
    np.testing.assert_array_equal(spectra.wavelength, GRID)
    np.testing.assert_array_equal(spectra.flux, [GRID, 2 * GRID])
    assert spectra.meta["teff"].tolist() == [5000.0, 6000.0]


def test_tables_without_spectra_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,teff\na,5000\n")
    with pytest.raises(DataError, match=r"a \.csv file, which specjax does not recognise"):
        read(path)
    with pytest.raises(DataError, match=r"labels\.csv: no columns wavelength and flux"):
        read(path, "columns")
    path.write_text("wavelength,flux\n4000,a\n4001,b\n")
    with pytest.raises(DataError, match="column flux does not contain numbers"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"labels\.csv"):
        read(path, "columns")
