"""What runs write: tables of labels and files of vectors, in every format."""

import sys

import h5py
import numpy as np
import pytest
from astropy.table import Table

from specjax.calibration.calibration import SUFFIXES
from specjax.cli import main
from specjax.errors import ConfigError, DataError
from specjax.flags import USABLE, Flag
from specjax.foundation import load
from specjax.pipeline import embed_survey, predict_survey
from specjax.prepare import plan
from specjax.preprocess import to_lamost
from specjax.surveys import read

pytestmark = pytest.mark.usefixtures("quick_compilation")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, in chunks of other shapes
FORMATS = [".h5", ".fits", ".parquet"]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 3)


def read_back(path):
    """Return the columns and the metadata of a file that a run has written."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            columns = {name: dataset[:] for name, dataset in file.items()}
            notes = {**file.attrs, "units": {name: item.attrs.get("unit") for name, item in file.items()}}
        return {n: np.char.decode(c) if c.dtype.kind == "S" else c for n, c in columns.items()}, notes
    table = Table.read(path)
    columns = {name: np.ma.filled(table[name], "" if name == "id" else np.nan) for name in table.colnames}
    units = {name: table[name].unit and str(table[name].unit) for name in table.colnames}
    return columns, {**{key.lower(): value for key, value in table.meta.items()}, "units": units}


@pytest.mark.parametrize("suffix", [*FORMATS, ".ecsv", ".csv"])
def test_labels_are_read_back(files, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"labels{suffix}"
    made = predict_survey(model=files.model, adapter=files.adapter, spectra=[files.raw], out=out, workers=1)
    columns, notes = read_back(out)
    errors = {f"fe_h{end}" for end in ("_std", *SUFFIXES)}
    assert set(columns) == set(made) == {"id", "fe_h", *errors, "flag", "masked_fraction", "distance"}
    for name, column in made.items():
        np.testing.assert_array_equal(columns[name].astype(column.dtype), column)
    assert (columns["flag"] == Flag.GOOD).sum() == (made["flag"] == Flag.GOOD).sum() > 0
    if suffix != ".csv":
        assert notes["configuration"] == "lora4"
        assert notes["digest"] == load(files.model).digest
        assert notes["units"]["fe_h"] == (None if suffix == ".fits" else "dex")


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_vectors_are_those_of_the_model(files, tmp_path, suffix, tokens):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out, model, name = tmp_path / f"v{suffix}", load(files.model), "tokens" if tokens else "vectors"
    sources = [files.raw, files.prepared]
    made = embed_survey(model=files.model, spectra=sources, out=out, tokens=tokens, fwhm=6.0, workers=1)
    raw = [read(files.raw / f"{number:03d}.npz") for number in (0, 1, 2, 4, 5, 6)]
    columns, notes = read_back(out)
    assert set(columns) == {"id", name, "flag", "masked_fraction"}
    assert made.keys() == columns.keys() - {name}
    found = columns[name].reshape(12, *((146, 16) if tokens else (-1,)))
    assert found.dtype.newbyteorder("=") == np.float32
    embed = model.tokens if tokens else model.embed
    for row, spectra in enumerate([*raw, *(read(files.prepared)[k] for k in range(6))]):
        lamost = to_lamost(spectra, fwhm=6.0)
        assert columns["id"][row] == lamost.id[0]
        assert columns["flag"][row] == lamost.meta["flag"][0]
        if lamost.meta["flag"][0] in USABLE:
            np.testing.assert_allclose(found[row], embed(lamost)[0], **CLOSE)
        else:
            assert np.isnan(found[row]).all()
    assert np.isnan(found).all(axis=tuple(range(1, found.ndim))).sum() == 2
    assert (notes["digest"], notes["model"]) == (model.digest, str(files.model))
    if suffix == ".parquet" and tokens:
        assert notes["tokens_shape"] == "[146, 16]"


def test_parquet_is_read_by_pandas_in_row_groups(files, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pandas = pytest.importorskip("pandas")
    out = tmp_path / "v.parquet"
    embed_survey(model=files.model, spectra=[files.raw], out=out, workers=1)
    assert parquet.ParquetFile(out).num_row_groups == 3
    frame = pandas.read_parquet(out)
    assert frame["id"].tolist() == [f"star {number}" for number in (0, 1, 2, 4, 5, 6)]
    (row,) = load(files.model).embed(to_lamost(read(files.raw / "001.npz")))
    np.testing.assert_allclose(frame["vectors"][1], row, **CLOSE)


def test_a_chunk_without_usable_spectra_has_vectors_of_nan(files, tmp_path):
    out = tmp_path / "v.h5"
    embed_survey(model=files.model, spectra=[files.raw / "002.npz"], out=out)
    columns, _ = read_back(out)
    assert columns["vectors"].shape == load(files.model).embed(np.ones((1, 1462))).shape
    assert np.isnan(columns["vectors"]).all()


def test_unsuitable_formats_are_refused_before_the_model_is_read(tmp_path, monkeypatch):
    options = {"model": tmp_path / "none", "spectra": [tmp_path / "none"]}
    with pytest.raises(DataError, match=r"cannot write vectors to v\.csv"):
        embed_survey(**options, out=tmp_path / "v.csv")
    with pytest.raises(DataError, match=r"the suffix must be one of \.ecsv, .*\.h5"):
        predict_survey(**options, out=tmp_path / "v.txt")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow"):
        predict_survey(**options, out=tmp_path / "v.parquet")


def test_prepared_spectra_of_another_resolution_are_not_embedded(files, tmp_path):
    with pytest.raises(ConfigError, match=r"prepared with fwhm 6\.0, not 9\.0"):
        embed_survey(model=files.model, spectra=[files.prepared], out=tmp_path / "v.h5", fwhm=9.0)


def test_the_commands(files, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"{files.raw}/00[01].npz\n")
    listed = ["--list", str(tmp_path / "list.txt"), "--model", str(files.model)]
    out = tmp_path / "labels.fits"
    assert main(["predict", *listed, "--adapter", str(files.adapter), "-o", str(out), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("files    2: 2 .npz\n")
    assert not out.exists()
    assert main(["predict", *listed, "--adapter", str(files.adapter), "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert Table.read(out)["id"].tolist() == ["star 0", "star 1"]
    vectors = tmp_path / "vectors.h5"
    words = ["embed", f"@{tmp_path}/list.txt", "--model", str(files.model), "-o", str(vectors), "--tokens"]
    assert main([*words, "--workers", "1"]) == 0
    assert read_back(vectors)[0]["tokens"].shape == (2, 146, 16)
    assert main([*words, "--workers", "0"]) == 1
    assert "at least one worker" in capsys.readouterr().err
    assert main(["embed", "-o", str(vectors)]) == 1
    assert "embed needs spectra" in capsys.readouterr().err
