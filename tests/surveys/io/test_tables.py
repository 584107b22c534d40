import tempfile

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.io.votable import parse, ucd
from astropy.table import QTable, Table

from specjax import units
from specjax._version import __version__
from specjax.errors import DataError
from specjax.flags import FLAG_DTYPE, Flag
from specjax.surveys.io import tables
from specjax.surveys.io.tables import flag_texts, qtable, read_table, write_table
from tests.damage import flip

COLUMNS = {
    "id": np.array(["007", "a b", "8,5", 'q"']),
    "teff": np.array([5000.0, np.nan, 6000.5, 4000.0], np.float32),
    "fe_h": np.array([0.1, -2.5, np.nan, 1e-12]),
    "fe_h_err": np.full(4, np.nan),
    "flag": np.array(["good", "too_fast", "good", "good"], FLAG_DTYPE),
    "good": np.array([True, False, True, False]),
    "n": np.arange(4),
}
FORMATS = [".ecsv", ".csv", ".fits", ".vot", ".parquet"]
DERIVED = [f"{label}{end}" for label in units.LABELS for end in ("", "_std", "_err", "_lo", "_hi95")]


def with_pandas(path):
    pandas = pytest.importorskip("pandas")
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    if path.suffix in (".fits", ".vot"):
        return with_texts(path).to_pandas()
    options = {"sep": " ", "comment": "#"} if path.suffix == ".ecsv" else {}
    return pandas.read_csv(path, dtype={"id": str}, **options)


def with_polars(path):
    polars = pytest.importorskip("polars")
    if path.suffix == ".parquet":
        return polars.read_parquet(path)
    if path.suffix in (".fits", ".vot", ".ecsv"):
        return polars.DataFrame({name: with_texts(path)[name].tolist() for name in COLUMNS})
    return polars.read_csv(path, schema_overrides={"id": polars.String})


def with_texts(path):
    table = Table.read(path)
    table.convert_bytestring_to_unicode()
    return table


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("read", [with_pandas, with_polars])
def test_data_frames_hold_the_columns_that_were_written(tmp_path, read, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t{suffix}"
    write_table(path, COLUMNS, {"made by": "hand"})
    frame = read(path)
    assert list(frame.columns) == list(COLUMNS)
    for name, column in COLUMNS.items():
        found = frame[name].to_list()
        if column.dtype.kind == "f":  # the shortest text of a float32 is read as another float64
            numbers = np.array([np.nan if value is None else value for value in found], column.dtype)
            np.testing.assert_array_equal(numbers, column)
        else:
            assert found == list(column)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("read", [Table.read, with_pandas, with_polars])
def test_good_rows_are_selected_by_their_flag(tmp_path, read, suffix):
    """An empty text would be a missing value for most readers, which no comparison selects."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t{suffix}"
    write_table(path, COLUMNS)
    good = read(path)["flag"] == Flag.GOOD
    assert [bool(one) for one in good] == [True, False, True, True]


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_flags_of_earlier_versions_are_good(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t{suffix}"
    write_table(path, {**COLUMNS, "flag": np.array(["", "too_fast", "", ""], FLAG_DTYPE)})
    found = flag_texts(read_table(path)["flag"])
    assert (found.dtype, found.tolist()) == (FLAG_DTYPE, ["good", "too_fast", "good", "good"])


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".csv"])
def test_units_and_descriptions_are_kept(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_table(tmp_path / f"t{suffix}", COLUMNS, {"made by": "hand", "model": "mini"})
    table = read_table(tmp_path / f"t{suffix}")
    standard = suffix in (".fits", ".vot")  # where the unit dex is a word in the description
    assert table["teff"].unit == u.K
    assert table["fe_h_err"].unit == (None if standard else u.dex)
    if suffix == ".fits":
        header = fits.getheader(tmp_path / "t.fits", 1)
        assert (header["MADE_BY"], header["TTYPE4"]) == ("hand", "fe_h_err")
        about = {n: (header.get(f"TCOMM{k}"), header.get(f"TUCD{k}")) for k, n in enumerate(COLUMNS, start=1)}
        assert table["teff"].description == about["teff"][0]  # astropy restores it
    elif suffix == ".vot":
        file = parse(tmp_path / "t.vot", verify="exception")
        assert [(i.name, i.value) for i in file.resources[0].infos] == [
            ("specjax", __version__),
            ("made by", "hand"),
            ("model", "mini"),
        ]
        about = {field.name: (field.description, field.ucd) for field in file.get_first_table().fields}
    else:
        assert table.meta == {"specjax": __version__, "made by": "hand", "model": "mini"}
        about = {c.name: (c.description, c.meta.get("ucd")) for c in table.itercols()}
    dex = " (dex)" if standard else ""
    assert about["teff"] == ("effective temperature", "phys.temperature.effective")
    assert about["fe_h_err"] == (f"standard error of [Fe/H]{dex}", "stat.error;phys.abund.Fe")
    assert about["n"] == (None, None)


@pytest.mark.parametrize("name", [*units.COLUMNS, *units.DESCRIBED, *DERIVED])
def test_descriptions_fit_into_a_card_and_ucds_are_of_the_vocabulary(name):
    description, ucds = units.column_description(name), units.column_ucd(name)
    assert 0 < len(f"{description} (dex)") <= 68  # the longest text of a FITS card
    assert ucds is None or ucd.check_ucd(ucds, check_controlled_vocabulary=True)


def test_the_ends_of_intervals_are_told_apart():
    about = [units.column_description(f"fe_h{end}") for end in ("_lo", "_hi", "_lo95", "_hi95", "_err", "")]
    assert len(set(about)) == len(about)


def test_a_qtable_converts_units():
    table = qtable(COLUMNS, {"model": "mini"})
    assert isinstance(table, QTable)
    assert table.meta == {"model": "mini"}
    np.testing.assert_allclose(table["teff"].to_value("kK"), COLUMNS["teff"] / 1e3, rtol=1e-6)  # float32
    assert table["fe_h"].unit == u.dex
    assert table["flag"].info.meta["ucd"] == "meta.code.qual"
    with pytest.raises(u.UnitConversionError):
        table["teff"].to("km")


def test_errors_of_a_label_carry_its_unit(tmp_path):
    write_table(tmp_path / "p.ecsv", {"id": ["a"], "teff_err": [50.0], "fe_h_err": [0.1], "n": [3]})
    table = Table.read(tmp_path / "p.ecsv")
    assert [str(table[name].unit) for name in ("teff_err", "fe_h_err", "n")] == ["K", "dex", "None"]


def test_invalid_tables_are_not_written(tmp_path):
    with pytest.raises(DataError, match=r"one of \.ecsv"):
        write_table(tmp_path / "labels.xls", {"id": np.array(["007"]), "fe_h": [0.1]})
    with pytest.raises(DataError, match="differ in length"):
        write_table(tmp_path / "labels.csv", {"id": ["a"], "fe_h": [1.0, 2.0]})
    assert not list(tmp_path.iterdir())


def test_a_long_ecsv_table_is_the_same_as_a_short_one(tmp_path, monkeypatch):
    columns = {"id": np.array(["#1", "a b", 'q"', "4", ""]), "teff": np.arange(5.0), "n": np.arange(5)}
    for name, rows in (("whole.ecsv", 100), ("parts.ecsv", 2)):
        monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows)
        tables.write_table(tmp_path / name, columns, {"made": "by hand"})
    assert (tmp_path / "parts.ecsv").read_bytes() == (tmp_path / "whole.ecsv").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_a_killed_process_may_leave_is_known_by_its_name(tmp_path, suffix, monkeypatch):
    """astropy, too, makes files beside the one that it changes; `remove_leftovers` must find them."""
    seen = set()
    whole = tempfile.mkstemp

    def mkstemp(*given, **more):
        made = whole(*given, **more)
        seen.update(path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*"))
        return made

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    names = (f"{label}{end}" for label in ("teff", "logg", "fe_h") for end in ("_err", "_lo", "_hi", "_std"))
    columns = {**COLUMNS, **{name: np.zeros(4) for name in names}}
    write_table(tmp_path / f"t{suffix}", columns, {f"key{number}": number for number in range(40)})
    assert seen
    assert all(name.startswith(".") for name in seen)
    assert [path.name for path in tmp_path.iterdir()] == [f"t{suffix}"]


def test_a_flipped_bit_of_a_written_fits_table_is_refused(tmp_path):
    path = tmp_path / "labels.fits"
    write_table(path, {"id": np.array(["a", "b"]), "fe_h": np.array([0.1, -2.0])})
    data = path.read_bytes()
    assert read_table(path)["fe_h"].tolist() == [0.1, -2.0]
    path.write_bytes(flip(data, 8 * (data.rindex(np.array([0.1], ">f8").tobytes()) + 5)))
    with pytest.raises(DataError, match=r"labels\.fits is damaged: .*sum verification failed"):
        read_table(path)


@pytest.mark.filterwarnings("ignore:non-ASCII characters")
@pytest.mark.parametrize("lost", [1, 5])
def test_a_fits_table_whose_header_has_lost_bytes_is_refused(tmp_path, lost):
    """astropy drops the table from what it checks, and then reads the rows from a wrong place."""
    path = tmp_path / "labels.fits"
    write_table(path, {"id": np.array(["a", "b"]), "fe_h": np.array([0.1, -0.5])})
    data = path.read_bytes()
    end = data.index(b"END" + b" " * 77, 2880) // 2880 * 2880 + 2880  # of the header of the table
    path.write_bytes(data[: end - lost] + data[end:])
    with pytest.raises(DataError, match="is damaged: its HDU 1 cannot be read"):
        read_table(path)
