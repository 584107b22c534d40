"""A folder of Parquet files: the rows of the one file in the same order, for every reader."""

import numpy as np
import pytest
from astropy.table import Table

from specjax.errors import DataError, SpecjaxError
from specjax.pipeline import embed_survey, parquet, predict_survey
from specjax.prepare import plan
from tests.prepare.stars import write_stars

pytest.importorskip("pyarrow")
pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Chunks of two files, and partitions of one chunk each."""
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 2)
    monkeypatch.setattr(parquet, "_PARTITION", 1)


def predict(files, out, spectra=None, **options):
    given = {"adapter": files.adapter, "workers": 1, "partitioned": True, **options}
    return predict_survey(model=files.model, spectra=spectra or [files.raw], out=out, **given)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Dask calls what pandas will remove.
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index")
def test_labels_are_those_of_one_file_for_every_reader(files, tmp_path):
    dataset, frames = pytest.importorskip("pyarrow.dataset"), pytest.importorskip("dask.dataframe")
    expected = predict(files, tmp_path / "one.parquet", partitioned=False)
    said = []
    assert predict(files, tmp_path / "labels.parquet", say=said.append) == {}
    assert f"1 of 6 spectra are flagged {str(expected['flag'][2])!r}" in said
    folder = tmp_path / "labels.parquet"
    assert sorted(contents(folder)) == [f"part-{number:05d}.parquet" for number in range(4)]
    read = {
        "pandas": pandas.read_parquet(folder),
        "arrow": dataset.dataset(folder).to_table().to_pandas(),
        "dask": frames.read_parquet(folder).compute(),
        "parts": pandas.concat([pandas.read_parquet(path) for path in sorted(folder.iterdir())]),
    }
    for frame in read.values():
        assert list(frame) == list(expected)
        for name, column in expected.items():
            np.testing.assert_array_equal(frame[name].to_numpy().astype(column.dtype), column)
    parts = [dataset.dataset(path).schema for path in folder.iterdir()]
    assert all(schema.equals(parts[0], check_metadata=True) for schema in parts)
    first = Table.read(folder / "part-00000.parquet")
    assert str(first["fe_h"].unit) == "dex"
    assert first.meta["configuration"] == "lora4"
    assert sorted(path.name for path in tmp_path.glob("labels*")) == [
        "labels.parquet",
        "labels.report.ecsv",
    ]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("tokens", [False, True])
def test_vectors_are_lists_of_one_size(files, tmp_path, tokens):
    options = {"model": files.model, "spectra": [files.raw], "tokens": tokens, "fwhm": 6.0, "workers": 1}
    embed_survey(**options, out=tmp_path / "one.parquet")
    embed_survey(**options, out=tmp_path / "many.parquet", partitioned=True)
    one, many = (pandas.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    pandas.testing.assert_frame_equal(one, many)


def test_parts_fill_partitions_in_order(files, tmp_path, monkeypatch):
    folder = write_stars(tmp_path / "raw", 7)
    monkeypatch.setattr(parquet, "_PARTITION", 1 << 20)
    predict(files, tmp_path / "one.parquet", [folder])
    assert list(contents(tmp_path / "one.parquet")) == ["part-00000.parquet"]
    sizes = [6, 3, 9, 2, 2]
    paths = [tmp_path / str(number) for number in range(5)]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    monkeypatch.setattr(parquet, "_PARTITION", 9)
    groups = [[int(path.name) for path in group] for group in parquet._groups(paths)]
    assert groups == [[0, 1], [2], [3, 4]]


def test_a_later_run_replaces_the_folder_and_reads_nothing_in_it(files, tmp_path):
    folder = write_stars(tmp_path / "raw", 5)
    predict(files, folder / "labels.parquet", [folder])
    assert len(contents(folder / "labels.parquet")) == 3
    (folder / "004.npz").unlink()
    (folder / "003.npz").unlink()
    predict(files, folder / "labels.parquet", [folder])
    assert pandas.read_parquet(folder / "labels.parquet")["id"].tolist() == ["star 0", "star 1", "star 2"]


def test_a_folder_or_file_in_the_way_is_left_alone_before_the_run(files, tmp_path):
    folder = tmp_path / "labels.parquet"
    predict(files, folder)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(SpecjaxError, match="was not written by specjax"):
        predict(files, folder)
    with pytest.raises(DataError, match="it is a folder"):
        predict(files, folder, partitioned=False)
    assert contents(folder) == before
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(DataError, match=r"partitions to labels\.fits: the suffix must be \.parquet"):
        predict(files, tmp_path / "labels.fits")


def test_an_error_while_partitions_are_written_leaves_the_old_folder(files, tmp_path, monkeypatch):
    folder, whole, calls = tmp_path / "labels.parquet", parquet._arrow, []
    predict(files, folder, [files.raw / "000.npz"])
    before = contents(folder)

    def failing(*given):
        calls.append(given)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return whole(*given)

    monkeypatch.setattr(parquet, "_arrow", failing)
    with pytest.raises(OSError, match="No space left"):
        predict(files, folder)
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".labels.parquet.parts",
        "labels.parquet",
        "labels.report.ecsv",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 2)
    said = []
    predict(files, folder, say=said.append)
    assert said[0] == "resuming: 4 of 4 chunks are finished"
