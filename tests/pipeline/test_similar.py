"""Searches in catalogues of vectors of every format, and what is refused."""

import dataclasses

import h5py
import numpy as np
import pytest
from astropy.table import Table

from specjax.cli import main
from specjax.errors import ConfigError, DataError
from specjax.flags import Flag
from specjax.foundation import load
from specjax.pipeline import embed_survey, find_similar, similar
from specjax.pipeline.vectors import open_catalogue
from tests.prepare.stars import write_star

pytestmark = pytest.mark.usefixtures("quick_compilation")
CLOSE = 1e-5  # float32, in chunks of other shapes


@pytest.fixture(scope="module", params=[".h5", ".fits", ".parquet", "folder"])
def catalogue(request, files, tmp_path_factory):
    folder = request.param == "folder"
    suffix = ".parquet" if folder else request.param
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("vectors") / f"v{suffix}"
    sources = [files.raw, files.arrays]
    embed_survey(model=files.model, spectra=sources, out=path, fwhm=6.0, workers=1, partitioned=folder)
    return path


@pytest.fixture(scope="module")
def vectors(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "v.h5"
    embed_survey(model=files.model, spectra=[files.raw, files.arrays], out=path, fwhm=6.0, workers=1)
    return path


def test_a_catalogue_is_read_as_it_was_written(files, catalogue, vectors):
    found, expected = open_catalogue(catalogue), open_catalogue(vectors)
    assert found.id.tolist() == expected.id.tolist()
    assert found.flag.tolist() == expected.flag.tolist()
    assert Flag.NO_COVERAGE in found.flag
    assert (len(found), found.width) == (16, 16)
    assert found.meta["digest"] == load(files.model).digest
    np.testing.assert_array_equal(
        np.concatenate(list(found.blocks())), np.concatenate(list(expected.blocks()))
    )
    some = np.array([11, 2, 3])
    np.testing.assert_array_equal(found.rows(some), np.concatenate(list(found.blocks()))[some])


def test_a_spectrum_finds_itself_first(files, catalogue, tmp_path):
    columns = find_similar(
        catalogue=catalogue,
        out=tmp_path / "similar.ecsv",
        spectra=[files.arrays],
        model=files.model,
        fwhm=6.0,
        nearest=4,
    )
    first = columns["rank"] == 1
    assert columns["id"][first].tolist() == columns["query"][first].tolist() == [f"s{k}" for k in range(10)]
    np.testing.assert_allclose(columns["similarity"][first], 1, atol=CLOSE)
    assert columns["rank"].tolist() == [1, 2, 3, 4] * 10
    assert (np.diff(columns["similarity"].reshape(10, 4)) <= 0).all()
    found = open_catalogue(catalogue)
    assert (found.id[columns["row"]] == columns["id"]).all()
    assert (found.flag[columns["row"]] == columns["flag"]).all()
    assert Flag.NO_COVERAGE not in columns["flag"]  # what has no vector is no neighbour
    table = Table.read(tmp_path / "similar.ecsv")
    assert table.meta["digest"] == load(files.model).digest
    np.testing.assert_allclose(table["similarity"], columns["similarity"], rtol=1e-6)


def test_a_spectrum_of_the_catalogue_is_no_neighbour_of_itself(vectors, tmp_path):
    columns = find_similar(catalogue=vectors, out=tmp_path / "s.csv", ids=["s3", "s1"], nearest=2)
    assert columns["query"].tolist() == ["s3", "s3", "s1", "s1"]
    assert not (columns["query"] == columns["id"]).any()
    every = np.concatenate(list(open_catalogue(vectors).blocks()))
    unit = every / np.linalg.norm(every, axis=1, keepdims=True)
    cosine = np.nan_to_num(unit @ unit[9], nan=-2)  # s3 is in row 9, after six single files
    cosine[9] = -2
    assert columns["row"][:2].tolist() == np.argsort(-cosine)[:2].tolist()


def test_a_file_of_vectors_can_be_the_query(vectors, tmp_path, capsys):
    said = []
    columns = find_similar(
        catalogue=vectors, out=tmp_path / "s.ecsv", spectra=[vectors], nearest=1, say=said.append
    )
    assert (columns["query"] == columns["id"]).all()
    assert len(columns["query"]) == 15
    assert said == ["1 of 16 queries have no vector and are left out: 1 flagged 'no_coverage'"]


@pytest.fixture
def with_index(monkeypatch):
    monkeypatch.setattr(similar, "EXACT_ROWS", 5)


@pytest.mark.usefixtures("with_index")
def test_an_index_is_kept_and_made_again_when_it_must_be(files, vectors, tmp_path, monkeypatch):
    path, said = tmp_path / "v.h5", []
    path.write_bytes(vectors.read_bytes())

    def search(**options):
        said.clear()
        out = tmp_path / "s.ecsv"
        return find_similar(catalogue=path, out=out, ids=["s1"], nearest=3, say=said.append, **options)

    exact = search(exact=True)
    assert said == []
    assert not path.with_name("v.h5.hnsw").exists()
    made = search()
    assert "there is no index" in said[0]
    same_rows = made["row"].tolist() == exact["row"].tolist()
    assert same_rows  # 16 vectors are fewer than the candidates that are kept
    assert search()["row"].tolist() == exact["row"].tolist()
    assert said == []
    index = path.with_name("v.h5.hnsw")
    index.write_bytes(b"x" + index.read_bytes()[1:])
    assert search()["row"].tolist() == exact["row"].tolist()
    assert "is damaged" in said[0]
    with h5py.File(path, "r+") as file:
        file["vectors"][made["row"][0]] = -file["vectors"][made["row"][0]]
    assert search()["row"].tolist() != exact["row"].tolist()
    assert "another catalogue or of an earlier state" in said[0]


@pytest.mark.usefixtures("with_index")
def test_without_hnswlib_all_vectors_are_compared(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(similar, "has_hnswlib", lambda: False)
    said = []
    columns = find_similar(catalogue=vectors, out=tmp_path / "s.ecsv", ids=["s1"], say=said.append)
    assert "install hnswlib" in said[0]
    assert columns["rank"].tolist() == list(range(1, 11))
    assert not list(vectors.parent.glob("*.hnsw"))


@pytest.mark.usefixtures("with_index")
def test_an_index_that_cannot_be_kept_is_used_all_the_same(vectors, tmp_path, monkeypatch):
    def refuse(*given):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(similar.Index, "save", refuse)
    said = []
    columns = find_similar(catalogue=vectors, out=tmp_path / "s.ecsv", ids=["s1"], say=said.append)
    assert len(columns["id"]) == 10
    assert said[-1].endswith("Permission denied")


def test_vectors_of_another_model_are_refused(files, vectors, tmp_path):
    dataclasses.replace(load(files.model), stats={}).save(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"holds vectors of the model .*, not those of the model") as error:
        find_similar(
            catalogue=vectors, out=tmp_path / "s.ecsv", spectra=[files.arrays], model=tmp_path / "bare"
        )
    assert "\n" not in str(error.value)
    other = tmp_path / "other.h5"
    other.write_bytes(vectors.read_bytes())
    with h5py.File(other, "r+") as file:
        file.attrs["digest"] = "0" * 64
    with pytest.raises(ConfigError, match=r"not those of .*v\.h5"):
        find_similar(catalogue=other, out=tmp_path / "s.ecsv", spectra=[vectors])
    with h5py.File(other, "r+") as file:
        del file.attrs["digest"]
    with pytest.raises(ConfigError, match="does not say which model"):
        find_similar(catalogue=other, out=tmp_path / "s.ecsv", ids=["s1"])


def test_only_a_catalogue_of_vectors_is_searched(files, vectors, tmp_path):
    out = tmp_path / "s.ecsv"
    tokens, cut = tmp_path / "tokens.h5", tmp_path / "cut.h5"
    embed_survey(model=files.model, spectra=[files.arrays], out=tokens, tokens=True, workers=1)
    cut.write_bytes(vectors.read_bytes()[:900])
    (tmp_path / "empty").mkdir()
    (tmp_path / "v.txt").write_text("1 2")
    for path, message in (
        (tokens, "it holds tokens"),
        (cut, "not a readable HDF5 file"),
        (files.arrays, "no column vectors, flag"),
        (tmp_path / "none.h5", "there is no catalogue"),
        (tmp_path / "empty", "holds no Parquet files"),
        (tmp_path / "v.txt", "neither .h5"),
    ):
        with pytest.raises(DataError, match=message):
            find_similar(catalogue=path, out=out, ids=["s1"])
    assert not out.exists()


def test_queries_that_cannot_be_read_are_reported(files, vectors, tmp_path):
    said, out = [], tmp_path / "s.ecsv"
    options = {"catalogue": vectors, "out": out, "model": files.model, "fwhm": 6.0, "say": said.append}
    columns = find_similar(spectra=[files.raw], nearest=1, **options)
    assert columns["query"].tolist() == [f"star {k}" for k in (0, 1, 4, 5, 6)]
    assert "003.npz is not a readable" in said[0]
    assert "no_coverage" in said[1]
    with pytest.raises(DataError, match=r"003\.npz is not a readable"):
        find_similar(spectra=[files.raw / "003.npz"], **options)
    blank = write_star(tmp_path, 2, flux=np.full((1, 1050), np.nan))
    with pytest.raises(DataError, match="no query has a vector to compare: 1 flagged 'no_coverage'"):
        find_similar(spectra=[blank], **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "needs spectra or --id"),
        ("VECTORS --id s1", "and not both"),
        ("--id nobody", "no spectrum with the id 'nobody'"),
        ("--id s1 -k 0", "at least one neighbour"),
    ],
)
def test_an_error_of_the_user_is_one_line(vectors, tmp_path, capsys, line, message):
    words = ["similar", "--catalogue", str(vectors), "-o", str(tmp_path / "s.ecsv")]
    assert main([*words, *line.replace("VECTORS", str(vectors)).split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s.ecsv").exists()


def test_the_command_writes_the_table(files, vectors, tmp_path, capsys):
    out = tmp_path / "s.fits"
    words = ["similar", str(files.arrays), "--catalogue", str(vectors), "--model", str(files.model)]
    assert main([*words, "--fwhm", "6", "-k", "2", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert len(Table.read(out)) == 20
