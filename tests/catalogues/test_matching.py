import numpy as np
import pytest
from astropy.table import Table

from specjax.catalogues.labels import read_labels
from specjax.catalogues.matching import label_spectra
from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.tables import write_table

ARCSEC = 1 / 3600
GRID = np.arange(3750.0, 5750.0, 4.0)
LINES = 1 + 0.1 * np.sin(GRID / 5)


def observed(ids, ra, **meta):
    flux = np.tile(LINES, (len(ids), 1))
    flux[0, 100:300] = np.nan  # 40% of the range, which is flagged
    return Spectra.build(
        GRID, flux, np.ones_like(flux), id=ids, meta={"ra": ra, "dec": np.zeros(len(ids)), **meta}
    )


@pytest.fixture
def catalogue():
    return Table(
        {
            "id": ["2M1", "2M2", "2M3"],
            "ra": [10.0, 20.0, 30.0],
            "dec": [0.0, 0.0, 0.0],
            "snr": [100.0, 90.0, 80.0],
            "gaia_source_id": ["44", "55", ""],
            "fe_h": [-1.0, 0.1, 0.2],
        },
        meta={"rows": 7},
    )


def test_every_spectrum_has_a_row_and_duplicates_are_identified(catalogue, tmp_path):
    ids = ["flagged", "near", "far", "alone"]
    ra = [20.0, 10 + 0.1 * ARCSEC, 10 + 0.5 * ARCSEC, 55.0]
    table = label_spectra(observed(ids, ra, snr=[60.0, 70.0, 80.0, 90.0]), catalogue)
    assert table["id"].tolist() == ids
    np.testing.assert_array_equal(table["fe_h"], [0.1, -1.0, np.nan, np.nan])
    assert table["label_id"].tolist() == ["2M2", "2M1", "", ""]
    assert table["duplicate_of"].tolist() == ["", "", "near", ""]
    assert table["flag"].tolist() == ["masked_fraction", "good", "good", "good"]
    np.testing.assert_array_equal(table["snr"], [60, 70, 80, 90])  # of the spectra, not of the catalogue
    np.testing.assert_array_equal(table["label_snr"], [90, 100, np.nan, np.nan])
    # degrees near 10 resolve 6e-12 arcsec; the haversine of so small an angle keeps nine digits
    np.testing.assert_allclose(table["separation"][:2], [0.0, 0.1], atol=1e-6)
    meta = {"catalogue_rows": 7, "spectra": 4, "labelled": 2, "duplicates": 1, "flagged": 1}
    assert dict(table.meta) == meta
    path = tmp_path / "labels.ecsv"
    write_table(path, {name: table[name] for name in table.colnames}, table.meta)
    again = read_labels(path, ["fe_h"])  # as `specjax adapt` reads it
    np.testing.assert_array_equal(again["fe_h"], table["fe_h"])


def test_ids_can_replace_positions(catalogue):
    spectra = Spectra.build(GRID, np.tile(LINES, (2, 1)), id=["55", "1"])
    table = label_spectra(spectra, catalogue, on="gaia_source_id")
    np.testing.assert_array_equal(table["fe_h"], [0.1, np.nan])
    assert np.isnan(table["snr"]).all()
    with pytest.raises(DataError, match="no column source_id; they have id"):
        label_spectra(spectra, catalogue, on="source_id")


def test_failed_matches_are_one_line(catalogue):
    with pytest.raises(DataError, match="none of 1 spectra matches one of 3 labelled stars within 1 arcsec"):
        label_spectra(observed(["a"], [70.0]), catalogue)
    with pytest.raises(DataError, match=r"one of 3 labelled stars by id \(the first are a and 2M1\)"):
        label_spectra(observed(["a"], [10.0]), catalogue, on="id")
    with pytest.raises(DataError, match="1 ids occur more than once among the spectra, the first a"):
        label_spectra(observed(["a", "a"], [10.0, 20.0]), catalogue)
    with pytest.raises(DataError, match="the spectra have no ra and no dec"):
        label_spectra(Spectra.build(GRID, LINES), catalogue)
