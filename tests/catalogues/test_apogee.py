import numpy as np
import pytest
from astropy.io import fits

from specjax.catalogues import apogee
from specjax.errors import ConfigError, DataError

ROWS = {
    # the last two rows are the same star in two fields
    "APOGEE_ID": ["2M01", "2M02", "2M03", "2M04", "2M05", "2M06", "2M07", "2M07"],
    "RA": np.arange(8) + 10.0,
    "DEC": np.zeros(8),
    "SNR": [100.0, 100, 100, 100, 40, 100, 80, 90],
    "STARFLAG": [0, 4, 0, 0, 0, 0, 0, 0],
    "ASPCAPFLAG": [1, 0, 1 << 19, 1 << 23, 0, 0, 0, 0],
    "TEFF": [5000.0] * 8,
    "TEFF_ERR": [50.0] * 8,
    "LOGG": [4.0] * 8,
    "FE_H": [-0.5, 0, 0, 0, 0, np.nan, -1.0, -1.1],
    "FE_H_ERR": [0.01] * 8,
    "GAIAEDR3_SOURCE_ID": [4408087461749558912, 0, 0, 0, 0, 0, 0, 0],
}
FORMATS = {
    "APOGEE_ID": "18A",
    "STARFLAG": "K",
    "ASPCAPFLAG": "K",
    "GAIAEDR3_SOURCE_ID": "K",
    "RA": "D",
    "DEC": "D",
}


def write(path, rows=ROWS):
    columns = [fits.Column(name, FORMATS.get(name, "E"), array=values) for name, values in rows.items()]
    fits.BinTableHDU.from_columns(columns).writeto(path, overwrite=True)
    return path


def test_all_cuts_are_applied_and_counted(tmp_path):
    table = apogee.read_labels(write(tmp_path / "allStar.fits"), labels=["fe_h"])
    assert table["id"].tolist() == ["2M01", "2M07"]
    np.testing.assert_allclose(
        table["fe_h"], [-0.5, -1.1], rtol=1e-7
    )  # single precision; from the better field
    assert table["gaia_source_id"].tolist() == ["4408087461749558912", ""]
    assert dict(table.meta) == {
        "rows": 8,
        "cut_starflag": 1,
        "cut_m_h": 1,
        "cut_star": 1,
        "cut_snr": 1,
        "without_labels": 1,
        "duplicates": 1,
        "kept": 2,
    }
    assert (str(table["fe_h"].unit), str(table["ra"].unit)) == ("dex", "deg")


@pytest.mark.parametrize(
    ("cut", "absent"), [("starflag", "2M02"), ("m_h", "2M03"), ("star", "2M04"), ("snr", "2M05")]
)
def test_each_cut_by_name(tmp_path, cut, absent):
    names = apogee.read_labels(write(tmp_path / "a.fits"), cuts=[cut], labels=["teff"])["id"].tolist()
    assert set(ROWS["APOGEE_ID"]) - set(names) == {absent}
    assert len(apogee.read_labels(tmp_path / "a.fits", cuts=())) == 7


def test_unknown_names_and_missing_columns_are_reported(tmp_path):
    path = write(tmp_path / "allStar.fits")
    with pytest.raises(ConfigError, match="unknown APOGEE cut 'good'; known are starflag"):
        apogee.read_labels(path, cuts=["good"])
    with pytest.raises(ConfigError, match="unknown APOGEE label 'mg_fe'"):
        apogee.read_labels(path, labels=["mg_fe"])
    with pytest.raises(DataError, match=r"allStar\.fits is not .* no column ALPHA_M"):
        apogee.read_labels(path, labels=["alpha_m"])
    low = write(tmp_path / "low.fits", {**ROWS, "SNR": [1.0] * 8})
    with pytest.raises(DataError, match="none of 8 rows passes the cuts starflag, m_h, star, snr"):
        apogee.read_labels(low)
    fits.PrimaryHDU().writeto(tmp_path / "image.fits")
    with pytest.raises(DataError, match="HDU 1 is not a table"):
        apogee.read_labels(tmp_path / "image.fits")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"allStar\.fits"):
        apogee.read_labels(path)
