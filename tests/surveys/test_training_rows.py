import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specjax.errors import DataError
from specjax.prepare import prepare_spectra
from specjax.progress import silent
from specjax.surveys.training_rows import Rows, find, held_out, label_scale
from tests.prepare.stars import write_stars
from tests.pretrain.files import write

BOTH = ("lamost", "gaia_xp")


@pytest.fixture
def pairs(tmp_path):
    return [
        write(tmp_path / "a.h5", {"train": 20, "val": 6, "test": 4}),
        write(tmp_path / "b.h5", {"train": 7}, seed=5),
    ]


def stored(paths, split, name):
    files = [h5py.File(path) for path in paths]
    return np.concatenate([file[f"{split}/{name}"][:, :, 0] for file in files if split in file])


def test_rows_of_several_files_are_read_as_one(pairs):
    train, val = held_out(find(pairs), 0.5)
    rows = Rows(train, BOTH, ("fe_h", "teff"))
    assert (len(rows), len(Rows(val, BOTH))) == (27, 6)
    everything = rows.read(0, 27)
    np.testing.assert_array_equal(everything["flux"], stored(pairs, "train", "lamost_spectra"))
    np.testing.assert_array_equal(everything["xp_flux"], stored(pairs, "train", "gaia_spectra"))
    assert everything["valid"].all()
    assert everything["labels"].shape == (27, 2)
    for start, count in (
        (3, 5),
        (18, 4),
        (25, 6),
        (20, 60),
    ):  # within, over the seam, over the end, and twice
        expected = (start + np.arange(count)) % 27
        found = rows.read(start, count)
        np.testing.assert_array_equal(found["row"], expected)
        for name, array in found.items():
            np.testing.assert_array_equal(array, everything[name][expected])


def test_ids_are_those_of_the_files_or_name_file_and_row(pairs, tmp_path):
    rows = Rows(held_out(find(pairs), 0.0)[0], BOTH)
    assert rows.ids(np.array([0, 19, 20])) == ["0", "19", "0"]
    without = write(tmp_path / "c.h5", {"train": 5})
    with h5py.File(without, "a") as file:
        del file["train/source_ids"]
    assert Rows(find([without]), BOTH).ids(np.array([3])) == ["c.h5:train-3"]


def test_pixels_that_must_not_be_used_are_invalid(tmp_path):
    path = write(tmp_path / "xp.h5", {"train": 5}, towers=("gaia_xp",))
    ivar = np.ones((5, 343, 1), np.float32)
    ivar[1, 4] = 0
    with h5py.File(path, "a") as file:
        file["train/spectra"][2, 7] = np.nan
        file["train/ivar"] = ivar
    found = Rows(find([], [path]), ("gaia_xp",)).read(0, 5)
    assert np.argwhere(~found["xp_valid"]).tolist() == [[1, 4], [2, 7]]
    assert found["xp_flux"][2, 7] == found["xp_flux"][1, 4] == 0


def test_gaia_xp_spectra_may_be_in_other_files_row_for_row(pairs, tmp_path):
    lamost = write(tmp_path / "l.h5", {"train": 8}, towers=("lamost",))
    xp = write(tmp_path / "x.h5", {"train": 8}, towers=("gaia_xp",))
    found = Rows(find([lamost], [xp]), BOTH).read(2, 3)
    np.testing.assert_array_equal(found["flux"], stored([lamost], "train", "spectra")[2:5])
    np.testing.assert_array_equal(found["xp_flux"], stored([xp], "train", "spectra")[2:5])
    with pytest.raises(
        DataError, match="row for row: they have train 20, val 6, test 4, the LAMOST files tr"
    ):
        find([lamost], [pairs[0]])
    with h5py.File(xp, "a") as file:
        file["train/source_ids"][7] = 12
    with pytest.raises(DataError, match=r"row 7 is 7 in .* and 12 in"):
        find([lamost], [xp])


def test_the_last_rows_of_every_file_are_held_out_without_a_split_val(tmp_path):
    paths = [write(tmp_path / f"{n}.h5", {"train": n, "test": 3}) for n in (10, 30, 1)]
    train, kept = held_out(find(paths), 0.1)
    assert [(part.start, part.stop) for part in train] == [(0, 9), (0, 27), (0, 1)]
    assert [(part.start, part.stop) for part in kept] == [(9, 10), (27, 30)]
    rows = Rows(kept, BOTH)
    np.testing.assert_array_equal(rows.read(1, 3)["flux"], stored(paths[1:2], "train", "lamost_spectra")[27:])
    assert rows.ids(np.array([0, 1, 3])) == ["9", "27", "29"]
    assert held_out(find(paths), 0.0)[1] == []


def test_files_of_another_layout_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", {"train": 4})
    with h5py.File(path, "a") as file:
        file.move("train/fe_h", "train/other")
    with pytest.raises(DataError, match="has no column fe_h; its columns are other, teff"):
        find([path], labels=("fe_h",))
    with h5py.File(path, "a") as file:
        file.move("train", "other")
    with pytest.raises(DataError, match="is neither a training file of SpecCLIP, nor"):
        find([path])


def test_rows_that_do_not_fit_each_other_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", {"train": 4})
    with h5py.File(path, "a") as file:
        del file["train/gaia_spectra"]
        file["train/gaia_spectra"] = np.ones((3, 343), np.float32)
    with pytest.raises(DataError, match="lamost_spectra has 4 rows, train/gaia_spectra has 3 rows"):
        find([path])
    with pytest.raises(DataError, match="there is no file"):
        find([tmp_path / "none.h5"])
    with pytest.raises(DataError, match="has no Gaia XP spectra"):
        Rows(find([write(tmp_path / "l.h5", {"train": 3}, towers=("lamost",))]), BOTH)


def test_the_label_scale_leaves_out_missing_labels():
    mean, std = label_scale(np.array([[1.0, 5.0], [3.0, np.nan], [np.nan, 5.0]]))
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(std, [1, 1e-6])


def as_parquet(source, path, *, rows_per_group=6, prefix=True, ivar=None):
    """Write the split "train" of a file of pairs as a Parquet table."""
    with h5py.File(source) as file:
        group = file["train"]
        columns = {
            "id": pa.array([f"star{k}" for k in group["source_ids"][:]]),
            "flux": pa.array(list(group["lamost_spectra"][:, :, 0])),
            "xp_flux": pa.array(list(group["gaia_spectra"][:, :, 0])),
            "fe_h": pa.array(group["fe_h"][:].ravel()),
        }
    if ivar is not None:
        columns["xp_ivar"] = pa.array(list(ivar))
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def test_a_parquet_table_is_read_as_the_same_hdf5_file(pairs, tmp_path):
    ivar = np.ones((20, 343), np.float32)
    ivar[4, 7] = 0
    table = as_parquet(pairs[0], tmp_path / "a.parquet", ivar=ivar)
    rows, same = Rows(find([table]), BOTH, ("fe_h",)), Rows(find(pairs[:1])[:1], BOTH, ("fe_h",))
    assert len(rows) == len(same) == 20
    for start, count in ((0, 20), (4, 3), (5, 8), (18, 4)):  # across row groups, and over the end
        found, expected = rows.read(start, count), same.read(start, count)
        hidden = np.argwhere(~found.pop("xp_valid"))
        assert hidden.tolist() == ([[4 - start, 7]] if start <= 4 else [])
        found["xp_flux"][*hidden.T] = expected["xp_flux"][*hidden.T]
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])
    assert rows.ids(np.array([0, 13])) == ["star0", "star13"]


def test_parquet_tables_of_another_layout_are_refused(pairs, tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"

    def refused(columns):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(DataError) as error:
            Rows(find([path]), ("lamost",)).read(0, 2)
        return str(error.value)

    assert "has no column flux or xp_flux; its columns are spectrum" in refused({"spectrum": [1.0]})
    assert "the column flux is double, not a list of 1462 numbers" in refused({"flux": [1.0]})
    assert "the column flux has 3 values per row, not 1462" in refused({"flux": [[1.0, 2.0, 3.0]]})
    assert "not all rows have lists of the same length" in refused({"flux": [[1.0] * 1462, [1.0]]})
    assert "not all rows have lists of the same length" in refused({"flux": [[1.0] * 1462, None]})
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet: "):
        find([path])
    monkeypatch.setattr("specjax.surveys.training_files.LARGEST_GROUP", 1 << 14)
    with pytest.raises(DataError, match="a row group of 20 rows is read as a whole and too large"):
        find([as_parquet(pairs[0], path, rows_per_group=20)])


def test_damaged_rows_of_a_prepared_file_are_an_error(tmp_path):
    prepare_spectra([write_stars(tmp_path / "raw", 3)], tmp_path / "p.h5", workers=1, say=silent)
    rows = Rows(find([tmp_path / "p.h5"]), ("lamost",))
    before = rows.read(0, 3)
    rows._files.close()
    with h5py.File(tmp_path / "p.h5", "a") as file:
        file["flux"][1, 9] *= 2
    rows = Rows(find([tmp_path / "p.h5"]), ("lamost",))
    np.testing.assert_array_equal(rows.read(2, 1)["flux"], before["flux"][2:])
    with pytest.raises(DataError, match=r"p\.h5: rows 0 to 3 of flux: row 1 is damaged"):
        rows.read(0, 3)
