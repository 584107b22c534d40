import numpy as np
import pytest
from astropy.table import Table

from specjax.errors import DataError
from specjax.surveys.io import tables
from specjax.surveys.io.tables import read_table, write_table
from tests.damage import flip


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


def test_a_flipped_bit_of_a_written_fits_table_is_refused(tmp_path):
    path = tmp_path / "labels.fits"
    write_table(path, {"id": np.array(["a", "b"]), "fe_h": np.array([0.1, -2.0])})
    data = path.read_bytes()
    assert read_table(path)["fe_h"].tolist() == [0.1, -2.0]
    path.write_bytes(flip(data, 8 * (data.rindex(np.array([0.1], ">f8").tobytes()) + 5)))
    with pytest.raises(DataError, match=r"labels\.fits is damaged: .*sum verification failed"):
        read_table(path)
