import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from astropy.units import Unit

from specjax.catalogues.generic import read_labels as read_catalogue
from specjax.catalogues.label_units import to_own_unit
from specjax.catalogues.labels import join_labels, read_labels
from specjax.errors import DataError
from specjax.surveys.io.tables import write_table

COLUMNS = {
    "id": np.array(["007", "HD 1", "c"]),
    "fe_h": [0.1, np.nan, -1.0],
    "teff": [5000.0, 6000.0, 4000.0],
}


@pytest.mark.parametrize("suffix", [".ecsv", ".csv", ".fits"])
def test_written_labels_are_read_back(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    write_table(path, COLUMNS, meta={"model": "mini"})
    table = read_labels(path)
    assert table["id"].tolist() == ["007", "HD 1", "c"]
    np.testing.assert_array_equal(table["fe_h"], COLUMNS["fe_h"])
    assert table["teff"].unit == (None if suffix == ".csv" else "K")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_labels_are_read_from_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; pip install 'specjax[parquet]'")
    write_table(tmp_path / "labels.parquet", COLUMNS)
    assert read_labels(tmp_path / "labels.parquet")["id"].tolist() == ["007", "HD 1", "c"]


def test_masked_labels_are_nan_and_integers_become_floats(tmp_path):
    table = Table({"id": [1, 2], "teff": [5000, 6000], "fe_h": MaskedColumn([0.1, 0.2], mask=[True, False])})
    table.write(tmp_path / "t.ecsv")
    labels = read_labels(tmp_path / "t.ecsv")
    assert labels["id"].tolist() == ["1", "2"]
    assert labels["teff"].dtype == np.float64
    np.testing.assert_array_equal(labels["fe_h"], [np.nan, 0.2])


def test_id_column_and_labels_can_be_selected(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("star,teff,note\n001,5000,x\n002,,y\n")
    labels = read_labels(path, ["teff"], id_column="star")
    assert labels.colnames == ["id", "teff"]
    assert labels["id"].tolist() == ["001", "002"]
    np.testing.assert_array_equal(labels["teff"], [5000, np.nan])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("star,teff\na,1\n", "has no column id, fe_h: it has star, teff"),
        ("id,teff\na,1\n", "no column fe_h"),
        ("id,fe_h\na,1\nb,2\na,3\n", "a occurs twice"),
        ("id,fe_h\na,1\n,2\n", "1 row without id"),
        ("id,fe_h\nb,0.1\na,high\n", "fe_h does not contain numbers: row 2 holds 'high'"),
        ("", "not a table"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_labels(path, ["fe_h"])
    assert "\n" not in str(caught.value)


def test_missing_tables_and_unknown_formats_are_refused(tmp_path):
    with pytest.raises(DataError, match="no table at"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "t.xyz").write_bytes(b"\x00\x01")
    with pytest.raises(DataError, match="not a table that astropy reads"):
        read_labels(tmp_path / "t.xyz")


def test_labels_are_joined_by_id_in_the_order_of_the_spectra(tmp_path):
    write_table(tmp_path / "t.ecsv", COLUMNS)
    table = read_labels(tmp_path / "t.ecsv")
    joined = join_labels(["c", "absent", "007"], table, ["fe_h"])
    np.testing.assert_array_equal(joined["fe_h"], [-1.0, np.nan, 0.1])
    with pytest.raises(DataError, match="no row in the label table for 1 spectrum: absent"):
        join_labels(["c", "absent"], table, ["fe_h"], partial=False)
    with pytest.raises(DataError, match="not unique: c"):
        join_labels(["c", "c"], table, ["fe_h"])
    with pytest.raises(DataError, match=r"spectra have x, y, z and 1 more, the table has 007"):
        join_labels(["x", "y", "z", "w"], table, ["fe_h"])


@pytest.mark.parametrize("suffix", [".ecsv", ".fits", ".vot"])
def test_labels_in_another_unit_are_converted(tmp_path, suffix):
    table = Table({"id": ["a", "b"], "teff": [5.777, 4.5], "teff_err": [0.1, 0.05], "fe_h": [0.0, -1.0]})
    table["teff"].unit = table["teff_err"].unit = "kK"
    table.write(tmp_path / f"t{suffix}", format={".vot": "votable", ".ecsv": "ascii.ecsv"}.get(suffix))
    found = read_labels(tmp_path / f"t{suffix}")
    np.testing.assert_allclose(found["teff"], [5777, 4500])
    np.testing.assert_allclose(found["teff_err"], [100, 50])
    assert found["fe_h"].tolist() == [0, -1]
    assert str(found["teff"].unit) == "K"
    mapped = read_catalogue(tmp_path / f"t{suffix}", columns={"teff": "teff", "fe_h": "fe_h"})
    np.testing.assert_allclose(mapped["teff"], [5777, 4500])


@pytest.mark.parametrize("unit", ["dex", "", "dex(cm s-2)", "log(cm.s**-2)", "---", None])
def test_logarithms_without_a_dimension_stay_as_they_are(tmp_path, unit):
    """As catalogues write the unit of log g, whether astropy knows it or not."""
    known = None if unit is None else Unit(unit, parse_strict="silent")
    assert to_own_unit("logg", np.array([4.4]), known, "t: column logg").tolist() == [4.4]


@pytest.mark.parametrize(
    ("name", "unit"), [("teff", "m"), ("logg", "cm s-2"), ("fe_h", "%"), ("teff", "deg_C")]
)
def test_units_that_cannot_be_converted_are_refused(tmp_path, name, unit):
    table = Table({"id": ["a"], name: [1.0]})
    table[name].unit = unit
    table.write(tmp_path / "t.ecsv")
    with pytest.raises(DataError, match=rf"t\.ecsv: column {name} is in .*, which cannot be converted to"):
        read_labels(tmp_path / "t.ecsv")
