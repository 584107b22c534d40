"""Runs over many files: the same rows as one file at a time, in order, resumable."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from threading import Barrier, Event

import h5py
import numpy as np
import pytest
from astropy.table import Table

from specjax.adapt import forward
from specjax.adapt import predict as adapt_predict
from specjax.adapt.predict import predict, predict_unadapted
from specjax.checkpoints import load_adapter
from specjax.errors import ConfigError, DataError, ModelError
from specjax.flags import Flag
from specjax.foundation import inference, load
from specjax.pipeline import embed_survey, predict_survey, work
from specjax.pipeline import run as run_module
from specjax.prepare import Options, plan, prepare_spectra
from specjax.preprocess import to_lamost
from specjax.surveys import read
from tests.prepare.stars import write_star, write_stars
from tests.processes import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")
READABLE = (0, 1, 2, 4, 5, 6)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32, in chunks of other shapes


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 3)
    monkeypatch.setattr(plan, "_ROWS_AT_ONCE", 4)


@pytest.fixture
def rows_of_arrays(monkeypatch):
    monkeypatch.setattr(plan, "_BYTES_AT_ONCE", 1000)


def run(files, spectra, out, **options):
    given = [spectra] if not isinstance(spectra, list) else spectra
    options = {"adapter": files.adapter, "workers": 1, **options}
    return predict_survey(model=files.model, spectra=given, out=out, **options)


def one_by_one(files, paths):
    """Predict the spectra of each file alone and whole."""
    model, stored = load(files.model), load_adapter(files.adapter)
    parts = [predict(model, read(path), stored.arrays, stored.config) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same(found, expected):
    assert list(found) == list(expected)
    for name, column in expected.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(found[name], column, **CLOSE)
        else:
            np.testing.assert_array_equal(found[name], column)


def raw_files(files):
    return [files.raw / f"{number:03d}.npz" for number in READABLE]


def test_raw_files_are_predicted_as_one_by_one(files, tmp_path):
    found = run(files, files.raw, tmp_path / "labels.ecsv")
    expected = one_by_one(files, raw_files(files))
    same(found, expected)
    assert set(found["flag"]) > {Flag.NO_COVERAGE, Flag.MASKED_FRACTION}
    assert np.isnan(found["fe_h"]).tolist() == [False, False, True, False, False, False]
    assert (found["distance"][[0, 1]] > 0).all()
    (row,) = Table.read(tmp_path / "labels.report.ecsv")
    assert (row["file"], row["outcome"]) == (str(files.raw / "003.npz"), "refused")
    assert "not a readable .npz" in row["reason"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.ecsv", "labels.report.ecsv"]


@pytest.mark.usefixtures("rows_of_arrays")
def test_rows_of_a_large_file_and_prepared_rows_are_predicted_as_the_whole_file(files, tmp_path):
    sources = [files.prepared, files.arrays]
    chunks = plan.make_plan(sources, plan.Options(), out=tmp_path / "x", split_prepared=True).chunks
    rows = [[(source.rows, source.prepared) for source in chunk] for chunk in chunks]
    ranges = [((0, 4), True)], [((4, 6), True)], [((0, 4), False)], [((4, 8), False)], [((8, 10), False)]
    assert rows == list(ranges)
    same(run(files, sources, tmp_path / "labels.fits"), one_by_one(files, sources))


@pytest.mark.usefixtures("rows_of_arrays")
def test_two_workers_keep_the_order_of_the_files(files, tmp_path):
    sources = [files.raw / "006.npz", files.arrays, files.prepared, files.raw]
    two = run(files, sources, tmp_path / "two.fits", workers=2)
    same(two, run(files, sources, tmp_path / "one.fits"))
    expected = ["star 6", *(f"s{k}" for k in range(10)), *read(files.prepared).id.tolist()]
    assert two["id"].tolist() == [*expected, *(f"star {k}" for k in (0, 1, 2, 4, 5))]


def test_ids_that_repeat_are_kept(files, tmp_path):
    write_star(tmp_path, 0)
    write_star(tmp_path, 1, id=["star 0"])
    found = run(files, [tmp_path / "000.npz", tmp_path / "001.npz"], tmp_path / "labels.csv")
    assert found["id"].tolist() == ["star 0", "star 0"]
    assert not (tmp_path / "labels.report.ecsv").exists()


def test_the_model_as_it_is_predicts_all_its_labels(files, tmp_path):
    model = load(files.model)
    for head in ("mlp1", "mlp2"):
        found = run(files, files.arrays, tmp_path / "labels.fits", adapter=None, head=head, fwhm=6.0)
        same(found, predict_unadapted(model, to_lamost(read(files.arrays), fwhm=6.0), head))
        np.testing.assert_allclose(
            found["teff"], model.predict(to_lamost(read(files.arrays), fwhm=6.0), head)["teff"], rtol=1e-5
        )
    assert str(Table.read(tmp_path / "labels.fits")["teff"].unit) == "K"
    with pytest.raises(ConfigError, match="leave out head"):
        run(files, files.arrays, tmp_path / "labels.fits", head="mlp1")
    with pytest.raises(ModelError, match="no head"):
        run(files, files.arrays, tmp_path / "labels.fits", adapter=None, head="mlp3")


def test_the_model_as_it_is_predicts_the_labels_asked_for(files, tmp_path):
    options = {"adapter": None, "fwhm": 6.0}
    every = run(files, files.arrays, tmp_path / "all.ecsv", **options)
    some = run(files, files.arrays, tmp_path / "some.ecsv", labels=["fe_h"], **options)
    assert set(every) - set(some) == {"teff"}
    np.testing.assert_array_equal(some["fe_h"], every["fe_h"])
    with pytest.raises(ConfigError, match="the model has no label age, mass; it has teff, fe_h"):
        run(files, files.arrays, tmp_path / "none.ecsv", labels=["age", "teff", "mass"], **options)
    with pytest.raises(ConfigError, match="leave out head, label"):
        run(files, files.arrays, tmp_path / "none.ecsv", labels=["fe_h"])


def test_the_scatter_of_a_model_is_the_error_of_its_labels_where_its_folder_knows_it(files, tmp_path):
    said, options = [], {"adapter": None, "fwhm": 6.0}
    found = run(files, files.raw, tmp_path / "labels.ecsv", say=said.append, **options)
    assert "the labels have no errors" in said[0]
    assert not [name for name in found if name.endswith("_err")]
    model = load(files.model)
    stats = {**model.stats, "mlp1": {**model.stats["mlp1"], "label_scatter": np.float32([90, 0.2])}}
    replace(model, stats=stats).save(tmp_path / "model")
    said.clear()
    known = replace(files, model=tmp_path / "model")
    with_error = run(known, files.raw, tmp_path / "labels.ecsv", head="mlp1", say=said.append, **options)
    assert not [line for line in said if "errors" in line]
    usable = np.isfinite(with_error["teff"])
    np.testing.assert_allclose(with_error["teff_err"], np.where(usable, 90, np.nan))
    np.testing.assert_allclose(with_error["fe_h_err"], np.where(usable, np.float32(0.2), np.nan))
    without = predict_unadapted(model, to_lamost(read(files.raw / "000.npz"), fwhm=6.0), "mlp1")
    np.testing.assert_allclose(with_error["teff"][0], without["teff"][0], rtol=1e-5)
    assert str(Table.read(tmp_path / "labels.ecsv")["teff_err"].unit) == "K"


def test_a_model_with_one_head_predicts_with_it(files, tmp_path):
    model = load(files.model)
    params = {name: tree for name, tree in model.params.items() if name != "mlp2"}
    replace(model, variables={**model.variables, "params": params}).save(tmp_path / "model")
    found = run(replace(files, model=tmp_path / "model"), files.arrays, tmp_path / "a.ecsv", adapter=None)
    expected = run(files, files.arrays, tmp_path / "b.ecsv", adapter=None, head="mlp1")
    np.testing.assert_array_equal(found["fe_h"], expected["fe_h"])
    assert Table.read(tmp_path / "a.ecsv").meta["head"] == "mlp1"


def test_gaia_xp_spectra_are_not_taken_for_others(files, tmp_path):
    np.savez(tmp_path / "xp.npz", source_id=[1], flux=np.ones((1, 343)), flux_error=np.ones((1, 343)))
    with pytest.raises(DataError, match="holds Gaia XP spectra"):
        run(files, tmp_path / "xp.npz", tmp_path / "labels.ecsv")


@pytest.fixture
def stopped(files, tmp_path, monkeypatch):
    """Stop a run over nine files before its second chunk is computed; return the folder and later calls."""
    folder, calls = write_stars(tmp_path / "raw", 9), []
    whole = run_module.read_chunk

    def stopping(sources, options):
        if calls:
            raise KeyboardInterrupt
        calls.append(sources)
        return whole(sources, options)

    monkeypatch.setattr(run_module, "read_chunk", stopping)
    said = []
    with pytest.raises(KeyboardInterrupt):
        run(files, folder, tmp_path / "labels.fits", say=said.append)
    assert said == ["1 of 3 chunks are finished: run the same command again to resume"]
    calls.clear()
    monkeypatch.setattr(run_module, "read_chunk", lambda *given: calls.append(given[0]) or whole(*given))
    return folder, calls


def test_a_stopped_run_is_resumed(files, tmp_path, stopped):
    folder, calls = stopped
    assert not (tmp_path / "labels.fits").exists()
    said = []
    found = run(files, folder, tmp_path / "labels.fits", say=said.append)
    assert [source.path.name for chunk in calls for source in chunk] == [f"{k:03d}.npz" for k in range(3, 9)]
    assert said[0] == "resuming: 1 of 3 chunks are finished"
    assert not list(tmp_path.glob(".*"))
    assert found["id"].tolist() == [f"star {k}" for k in range(9)]
    run(files, folder, tmp_path / "anew.fits")
    assert (tmp_path / "labels.fits").read_bytes() == (tmp_path / "anew.fits").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"survey": "arrays"}, "survey was None and is now arrays"),
        ({"adapter": None}, "adapter was .* and is now None"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(files, tmp_path, stopped, change, said):
    folder, calls = stopped
    with pytest.raises(ConfigError, match=said) as caught:
        run(files, folder, tmp_path / "labels.fits", **change)
    assert "\n" not in str(caught.value)
    write_star(folder, 3, ra=[5.0], dec=[1.0])
    with pytest.raises(ConfigError, match=r"003\.npz changed"):
        run(files, folder, tmp_path / "labels.fits")
    assert calls == []


def test_chunks_after_the_first_are_computed_two_at_a_time(files, tmp_path, monkeypatch):
    """Each waits for another one to begin, so that one at a time would end in a BrokenBarrierError."""
    together, first, write = Barrier(2, timeout=60), [], run_module.write_chunk

    def waiting(work, chunk, path):
        if first:
            together.wait()
        first.append(path)
        return write(work, chunk, path)

    monkeypatch.setattr(run_module, "write_chunk", waiting)
    folder = write_stars(tmp_path / "raw", 9)
    found = run(files, folder, tmp_path / "labels.fits")
    assert first[0].name == "000000.npz"
    assert found["id"].tolist() == [f"star {k}" for k in range(9)]


def test_an_error_in_one_chunk_ends_the_run(files, tmp_path, monkeypatch):
    def failing(*given):
        raise RuntimeError("no space")

    monkeypatch.setattr(run_module, "write_chunk", failing)
    with pytest.raises(RuntimeError, match="no space"):
        run(files, write_stars(tmp_path / "raw", 9), tmp_path / "labels.fits")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_beside_another_chunk_loses_nothing_that_is_finished(files, tmp_path, monkeypatch, error):
    """The second of three chunks fails once the third has begun, and the same command goes on."""
    folder, out = write_stars(tmp_path / "raw", 9), tmp_path / "labels.fits"
    expected = run(files, folder, tmp_path / "expected.fits")
    whole, third = run_module.write_chunk, Event()

    def failing(work, chunk, path):
        if path.name == "000001.npz":
            assert third.wait(60)
            raise error("no space")
        if path.name == "000002.npz":
            third.set()
        return whole(work, chunk, path)

    monkeypatch.setattr(run_module, "write_chunk", failing)
    with pytest.raises(error, match="no space"):
        run(files, folder, out)
    parts = sorted(path.name for path in (tmp_path / ".labels.fits.parts").glob("*.npz"))
    assert parts == ["000000.npz", "000002.npz"]  # that of the chunk that was running is whole, too
    monkeypatch.setattr(run_module, "write_chunk", whole)
    said = []
    same(run(files, folder, out, say=said.append), expected)
    assert "resuming: 2 of 3 chunks are finished" in said


def test_predictions_are_not_resumed_as_embeddings(files, tmp_path, stopped):
    (tmp_path / ".labels.fits.parts").rename(tmp_path / ".vectors.fits.parts")
    with pytest.raises(ConfigError, match="command was predict and is now embed"):
        embed_survey(model=files.model, spectra=[stopped[0]], out=tmp_path / "vectors.fits")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(files, tmp_path, stopped, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(run_module, "run_jobs", None)
    said = []
    sources = [stopped[0], files.arrays, files.prepared]
    assert run(files, sources, tmp_path / "labels.fits", dry_run=True, say=said.append) == {}
    assert said[0] == "files    11: 1 .h5, 9 .npz, 1 prepared .h5"
    assert said[1].startswith("spectra  6 and those of files")
    assert "arrays.h5 is new" in said[3]
    said.clear()
    run(files, stopped[0], tmp_path / "labels.fits", dry_run=True, say=said.append)
    assert said[2] == "chunks   3, of which 1 are finished"
    assert len(said) == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_without_readable_files_there_is_one_error(files, tmp_path):
    (tmp_path / "bad.npz").write_text("no spectra")
    (tmp_path / "worse.h5").write_text("no spectra")
    with pytest.raises(DataError, match=r"^\S*bad\.npz is not a readable"):
        run(files, tmp_path / "bad.npz", tmp_path / "labels.ecsv")
    with pytest.raises(DataError, match=r"none of 2 files could be used \(see .*\); the first: .*bad\.npz"):
        run(files, [tmp_path / "bad.npz", tmp_path / "worse.h5"], tmp_path / "labels.ecsv")
    assert not (tmp_path / "labels.ecsv").exists()
    assert not list(tmp_path.glob(".*"))
    run(files, files.arrays, tmp_path / "labels.ecsv")  # an earlier report does not remain
    assert len(Table.read(tmp_path / "labels.report.ecsv")) == 0


def test_the_table_says_in_which_type_the_products_were_computed(files, tmp_path):
    single = run(files, files.arrays, tmp_path / "single.ecsv")
    half = run(files, files.arrays, tmp_path / "half.ecsv", dtype="bfloat16")
    kinds = [Table.read(tmp_path / f"{name}.ecsv").meta["dtype"] for name in ("single", "half")]
    assert kinds == ["float32", "bfloat16"]
    assert (half["fe_h"] != single["fe_h"]).all()
    assert np.corrcoef(half["fe_h"], single["fe_h"])[0, 1] > 0.95  # 0.4%, which random weights amplify


def test_files_prepared_otherwise_are_refused_before_the_run(files, tmp_path):
    with pytest.raises(ConfigError, match="prepared with fwhm"):
        run(files, [files.raw, files.prepared], tmp_path / "labels.fits", adapter=None, fwhm=9.0)
    assert not list(tmp_path.iterdir())


def test_chunks_of_any_size_compile_nothing_new(files, tmp_path):
    run(files, files.raw / "000.npz", tmp_path / "labels.fits")
    stored = load_adapter(files.adapter)
    model = load(files.model)
    predict(model, read(files.arrays), stored.arrays, stored.config)
    program = forward._label_program(model.config, ("mlp2",), "float32", False)
    compiled = inference._run._cache_size(), program._cache_size()
    run(files, [files.raw, files.prepared, files.arrays], tmp_path / "labels.fits")
    assert (inference._run._cache_size(), program._cache_size()) == compiled


PROGRAM = """
import sys
from pathlib import Path
from specjax.pipeline import predict_survey, work
from specjax.prepare import plan

plan._FILES_AT_ONCE = 2
model, adapter, folder, out = sys.argv[1:]
if __name__ == "__main__":
    write = work.write_part

    def slow(path, *given):
        write(path, *given)
        print("part", flush=True)
        sys.stdin.read()  # until it is killed

    work.write_part = slow
    predict_survey(model=model, adapter=Path(adapter), spectra=[folder], out=Path(out), workers=2)
"""


def test_a_killed_run_with_workers_loses_no_finished_part(files, tmp_path, monkeypatch):
    folder, out = write_stars(tmp_path / "raw", 8), tmp_path / "labels.fits"
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, tmp_path / "program.py", files.model, files.adapter, folder, out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as killed:
        assert killed.stdout.readline() == "part\n"
        killed.send_signal(signal.SIGKILL)
    (finished,) = (tmp_path / ".labels.fits.parts").glob("0*.npz")
    written, whole = [], work.write_part
    monkeypatch.setattr(work, "write_part", lambda *given: written.append(given[0]) or whole(*given))
    monkeypatch.setattr(plan, "_FILES_AT_ONCE", 2)
    found = run(files, folder, out)
    assert len(written) == 3
    assert finished not in written
    same(found, run(files, folder, tmp_path / "anew.fits"))


def test_a_damaged_prepared_file_is_refused_and_does_not_stop_the_run(files, tmp_path):
    for number, (name, change) in enumerate((("flux", None), ("ivar", None), ("flux", np.nan))):
        path = tmp_path / f"{number}.h5"
        path.write_bytes(files.prepared.read_bytes())
        with h5py.File(path, "r+") as file:
            del file["crc32"]
            file.attrs["version"] = 1
            if change is None:
                del file[name]
            else:
                file[name][5] = change
    found = run(files, [*sorted(tmp_path.glob("*.h5")), files.arrays], tmp_path / "labels.fits")
    assert found["id"].tolist() == [*read(files.prepared).id[:4].tolist(), *(f"s{k}" for k in range(10))]
    report = Table.read(tmp_path / "labels.report.ecsv")
    assert [name.rsplit("/")[-1] for name in report["file"]] == ["0.h5", "1.h5", "1.h5", "2.h5"]
    assert "2 spectra from star 6: flux and ivar must be finite" in report["reason"][3]


def test_a_damaged_first_row_does_not_hide_how_a_file_was_prepared(files, tmp_path):
    path = tmp_path / "other.h5"
    prepare_spectra([files.raw], path, options=Options(fwhm_from=9.0), workers=1)
    with h5py.File(path, "r+") as file:
        file["flux"][0, 100] *= 1.001
    with pytest.raises(ConfigError, match="prepared with fwhm"):
        run(files, path, tmp_path / "labels.fits")


def test_damaged_rows_are_in_the_report_and_the_others_are_predicted(files, tmp_path):
    path = tmp_path / "damaged.h5"
    path.write_bytes(files.prepared.read_bytes())
    with h5py.File(path, "r+") as file:
        file["flux"][5, 100] *= 1.001
    expected, found = run(files, files.prepared, tmp_path / "a.fits"), run(files, path, tmp_path / "b.fits")
    kept = np.arange(len(expected["id"])) != 5
    assert found["id"].tolist() == expected["id"][kept].tolist()
    # Other numbers of rows at once round differently.
    np.testing.assert_allclose(found["fe_h"], expected["fe_h"][kept], atol=1e-5)
    (row,) = Table.read(tmp_path / "b.report.ecsv")
    assert (row["file"], row["outcome"]) == (str(path), "refused")
    assert f"row 5 ({expected['id'][5]}) of the spectra is damaged" in row["reason"]


def test_a_file_that_the_model_refuses_spares_the_others_of_its_chunk(files, tmp_path, monkeypatch):
    paths, compute = raw_files(files), adapt_predict.predict_label

    def refusing(model, heads, adapters, spectra, *given):
        if "star 1" in spectra.id:
            raise DataError("an odd spectrum")
        return compute(model, heads, adapters, spectra, *given)

    monkeypatch.setattr(adapt_predict, "predict_label", refusing)
    found = run(files, paths, tmp_path / "labels.fits")
    monkeypatch.undo()
    same(found, one_by_one(files, [paths[0], *paths[2:]]))
    (row,) = Table.read(tmp_path / "labels.report.ecsv")
    assert row["file"] == str(paths[1])
    assert "an odd spectrum" in row["reason"]
