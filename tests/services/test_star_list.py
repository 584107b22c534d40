import numpy as np
import pytest
from astropy.table import Table

from specjax.errors import ConfigError, DataError
from specjax.services.star_list import from_ids, read_star_list

IDS = ("sparcl_id", "targetid", "specid")
BIG = 39627652591521181


def write(path, text):
    path.write_text(text)
    return path


def test_the_first_known_column_identifies_the_stars(tmp_path):
    path = write(tmp_path / "t.csv", f"id,specid,targetid,ra,dec\na,1,{BIG},1.0,2.0\nb,2,-5,1.0,2.0\n")
    found = read_star_list(path, IDS, sky=True)
    assert (found.kind, found.values.tolist()) == ("targetid", [str(BIG), "-5"])
    assert found.names.tolist() == ["a", "b"]
    assert read_star_list(path, ("specid",), sky=False).values.tolist() == ["1", "2"]


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "csv"])
def test_ids_keep_every_digit_in_every_format(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    Table({"targetid": np.array([BIG, 7])}).write(path)
    assert read_star_list(path, IDS, sky=True).values.tolist() == [str(BIG), "7"]


def test_positions_are_accepted(tmp_path):
    found = read_star_list(write(tmp_path / "t.csv", "ra,dec\n-1.0,2.0\n361.0,3.0\n"), IDS, sky=True)
    assert found.kind == "sky"
    assert found.sky.tolist() == [[359.0, 2.0], [1.0, 3.0]]
    assert found.names.tolist() == ["0", "1"]


def test_plain_lists_repeated_ids_and_empty_ids(tmp_path):
    assert read_star_list(
        write(tmp_path / "a.txt", f"{BIG}\n7\n{BIG}\n"), ("source_id",), sky=False
    ).values.tolist() == [
        str(BIG),
        "7",
    ]
    found = read_star_list(
        write(tmp_path / "b.csv", "id,source_id\na,4\nb,\nc,4\n"), ("source_id",), sky=False
    )
    assert (found.values.tolist(), found.names.tolist(), found.aliases) == (["4"], ["a"], (("c", "4"),))


@pytest.mark.parametrize("suffix", ["fits", "csv"])
def test_columns_are_found_in_any_case(tmp_path, suffix):
    path = tmp_path / f"allStar.{suffix}"
    Table({"RA": [1.0], "Dec": [2.0], "TEFF": [5000.0]}).write(path)
    assert read_star_list(path, IDS, sky=True).sky.tolist() == [[1.0, 2.0]]
    with pytest.raises(DataError, match="none of the columns"):
        read_star_list(path, IDS, sky=False)


def test_the_digest_distinguishes_lists(tmp_path):
    one, two = from_ids("specid", ["1", "2"]), from_ids("specid", ["1", "3"])
    assert one.digest() == from_ids("specid", ["1", "2"]).digest()
    assert len({one.digest(), two.digest(), from_ids("targetid", ["1", "2"]).digest()}) == 3
    near = [
        read_star_list(write(tmp_path / "t.csv", f"ra,dec\n{ra},2\n"), IDS, sky=True).digest()
        for ra in (1.0, 1.0000001)
    ]
    assert near[0] != near[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,ra\nx,1\n",
            "none of the columns sparcl_id, .*, or ra and dec; it has name, ra",
        ),
        ("ra,dec\n", "no rows"),
        ("ra,dec\n1,95\n", "exceed 90"),
        ("ra,dec\nx,1\n", "not numbers"),
        ("ra,dec\n1,\n2,3\n", "1 rows have no position"),
        ("targetid\nabc\n", "'abc' is not a whole number"),
        ("targetid\n1.5e16\n", "not a whole number"),
        ("targetid\n99999999999999999999\n", "64 bits"),
        ("targetid,x\n,1\n", "column targetid is empty"),
        ("", "t.csv"),
    ],
)
def test_invalid_tables_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_star_list(write(tmp_path / "t.csv", text), IDS, sky=True)
    assert "\n" not in str(caught.value)


def test_floating_point_ids_and_missing_files_are_refused(tmp_path):
    Table({"targetid": [1.5e16]}).write(tmp_path / "t.fits")
    with pytest.raises(DataError, match="lose digits"):
        read_star_list(tmp_path / "t.fits", IDS, sky=True)
    with pytest.raises(ConfigError, match="no table at"):
        read_star_list(tmp_path / "nothing.csv", IDS, sky=True)
