"""Labels from any catalogue by a mapping of columns; the example has those of GALAH."""

import numpy as np
import pytest
from astropy.table import Table

from specjax.catalogues.generic import parse_columns, read_labels
from specjax.errors import ConfigError, DataError

GALAH = {
    "sobject_id": [131116000501001, 131116000501002, 131116000501003, 131116000501004, 131116000501004],
    "gaiadr3_source_id": [4408087461749558912, 0, 3, 4, 4],
    "ra": [10.0, 11.0, 12.0, 13.0, 13.0],
    "dec": [-5.0, -5.0, -5.0, -5.0, -5.0],
    "snr_px_ccd3": [100.0, 100.0, 20.0, 50.0, 60.0],
    "flag_sp": [0, 4, 0, 0, 0],
    "teff": [5000.0, 5100.0, 5200.0, 5300.0, 5301.0],
    "fe_h": [-0.5, 0.0, 0.1, -9999.0, -0.2],
    "e_fe_h": [0.05, 0.05, np.nan, 0.1, 0.1],
}
COLUMNS = "id=sobject_id,gaia_source_id=gaiadr3_source_id,snr=snr_px_ccd3,teff,fe_h=fe_h,fe_h_err=e_fe_h"


@pytest.fixture(params=["galah.fits", "galah.csv", "galah.ecsv"])
def path(request, tmp_path):
    table = Table(GALAH)
    table.write(tmp_path / request.param)
    return tmp_path / request.param


def test_columns_are_mapped_and_conditions_counted(path):
    table = read_labels(path, columns=parse_columns(COLUMNS), where=["flag_sp == 0", "snr_px_ccd3 > 30"])
    assert table["id"].tolist() == ["131116000501001", "131116000501004"]
    assert table["gaia_source_id"].tolist() == ["4408087461749558912", "4"]
    np.testing.assert_allclose(table["teff"], [5000, 5301])
    np.testing.assert_allclose(table["fe_h"], [-0.5, -0.2])  # -9999 means unknown
    np.testing.assert_allclose(table["fe_h_err"], [0.05, 0.1])
    np.testing.assert_allclose(table["ra"], [10.0, 13.0])
    assert (str(table["teff"].unit), str(table["fe_h_err"].unit), str(table["dec"].unit)) == (
        "K",
        "dex",
        "deg",
    )
    assert dict(table.meta) == {
        "rows": 5,
        "flag_sp == 0": 1,
        "snr_px_ccd3 > 30": 1,
        "without_labels": 0,
        "duplicates": 1,
        "kept": 2,
    }


def test_a_star_needs_a_label_but_no_id(tmp_path):
    Table({"met": [0.1, -9999.0, np.nan]}).write(tmp_path / "t.csv")
    table = read_labels(tmp_path / "t.csv", columns={"fe_h": "met"})
    assert table["id"].tolist() == ["row 0"]
    assert np.isnan(table["ra"]).all()
    assert table.meta["without_labels"] == 2


@pytest.mark.parametrize(
    ("columns", "where", "error", "message"),
    [
        ({"fe_h": "feh"}, [], DataError, "has no column feh; it has sobject_id, .*"),
        ({"fe_h": "fe_h"}, ["flag == 0"], DataError, "has no column flag"),
        ({"fe_h": "fe_h"}, ["snr_px_ccd3 > 1000"], DataError, "none of 5 rows .* fulfils snr_px_ccd3 > 1000"),
        ({"id": "sobject_id"}, [], ConfigError, "at least one label"),
        ({"fe_h": "fe_h"}, ["good"], ConfigError, "is not a condition"),
    ],
)
def test_errors_are_one_line(path, columns, where, error, message):
    with pytest.raises(error, match=message) as caught:
        read_labels(path, columns=columns, where=where)
    assert "\n" not in str(caught.value)


def test_missing_and_invalid_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no catalogue at"):
        read_labels(tmp_path / "none.fits", columns={"fe_h": "fe_h"})
    (tmp_path / "text.fits").write_text("not FITS")
    with pytest.raises(DataError, match=r"text\.fits is not a catalogue"):
        read_labels(tmp_path / "text.fits", columns={"fe_h": "fe_h"})


def test_mappings_of_columns_are_parsed():
    assert parse_columns("fe_h = feh, teff") == {"fe_h": "feh", "teff": "teff"}
    for text in ("", "fe_h=", "=feh", "fe_h=a,fe_h=b", "fe_h,,teff"):
        with pytest.raises(ConfigError, match="is not a mapping of columns"):
            parse_columns(text)
