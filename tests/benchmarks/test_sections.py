"""Every section runs, with a tiny model where it need not be the one that ships."""

import dataclasses
import json

import h5py
import numpy as np
import pytest

import specjax
from benchmarks import cold, names, processes, sections, survey_files, survey_run, surveys
from benchmarks.comparison import BATCHED, FOLDED, LOOP, missing_packages
from benchmarks.options import Options
from specjax.flags import USABLE
from specjax.preprocess import to_lamost
from specjax.surveys import prepared
from tests import synthetic
from tests.models.tiny import TINY

QUICK = Options(quick=True, repeats=1)
compared = pytest.mark.skipif(bool(missing_packages()), reason="PyTorch is not installed")


@pytest.fixture
def bench(monkeypatch):
    """The sections with a tiny model, and PyTorch with one thread: several would spin on a busy machine."""
    config = dataclasses.replace(
        TINY, specformer=dataclasses.replace(TINY.specformer, mask_chunks=2, mask_width=3)
    )
    monkeypatch.setattr(sections, "get_preset", lambda name: config)
    if not missing_packages():
        monkeypatch.setattr("benchmarks.in_torch.core_count", lambda: 1)
    with synthetic.quick_compilation():
        yield sections.Bench(QUICK)


@compared
@pytest.mark.parametrize("letter", ["a", pytest.param("b", marks=pytest.mark.slow), "c", "e"])
def test_sections_compare_with_pytorch(bench, letter):
    rows = list(getattr(bench, letter)())
    assert {row.section for row in rows} == {letter}
    for row in rows:
        assert not row.note
        assert all(seconds > 0 for times in row.times.values() for seconds in times)
        assert row.count > 0
    sides = {side for row in rows for side in row.times}
    expected = {"a": {LOOP}, "b": {LOOP, BATCHED, FOLDED}, "c": {LOOP, BATCHED}, "e": {LOOP}}[letter]
    assert expected | {"specjax"} <= sides


@pytest.mark.slow
def test_the_table_of_six_configurations_is_timed(bench):
    (row,) = bench.d()
    assert row.count == 2


def test_preprocessing_is_timed(bench):
    rows = list(bench.k())
    assert rows[-1].what == names.host_side(200)
    assert all(row.cpu["specjax"][0] > 0 for row in rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of raw files, the prepared file and the adapter of a small survey."""
    folder = tmp_path_factory.mktemp("survey")
    raw = survey_files.write_raw(folder / "raw", 9)
    return raw, survey_files.write_prepared(raw, folder / "prepared.h5", 20)


def test_a_prepared_file_repeats_the_rows_of_the_raw_one(files):
    raw, path = files
    spectra, given = prepared.read(path), to_lamost(specjax.read(next(raw.iterdir())))
    assert len(spectra) == 20
    assert np.isin(spectra.meta["flag"], USABLE).all()
    # The file holds single precision.
    np.testing.assert_allclose(spectra.flux[9:18], given.flux, rtol=1e-6)
    np.testing.assert_array_equal(spectra.mask[18:], given.mask[:2])


def test_raw_files_beyond_the_first_are_links(tmp_path, monkeypatch):
    monkeypatch.setattr(survey_files, "PER_FILE", 3)
    found = list(survey_files.write_raw(tmp_path / "raw", 8).iterdir())
    counts = []
    for path in found:
        with h5py.File(path) as file:
            counts.append(len(file["id"]))
    assert sorted(counts) == [2, 3, 3]
    assert len({path.stat().st_ino for path in found}) == 2


def test_a_survey_is_predicted_and_compared_with_the_core(files, tmp_path, capsys):
    raw, path = files
    adapter = survey_files.write_adapter(tmp_path / "adapter", specjax.load("mini"), seeds=2)
    with synthetic.quick_compilation():
        survey_run.main(str(adapter), str(raw), str(path), "20", "1")
    measured = json.loads(capsys.readouterr().out)
    assert measured["failures"] == []
    assert {side: len(times) for side, times in measured["seconds"].items()} == {
        "core": 1,
        "raw": 1,
        "prepared": 1,
    }
    rows = {row.what: row for row in surveys._compared(measured, 20)}
    core, own = (rows[names.survey(kind, 20)] for kind in (names.CORE, names.PREPARED))
    assert own.of_core == [core.median() / own.median()]


def test_spectra_without_a_label_would_be_noticed():
    survey_run.check({"fe_h": np.zeros(3)}, 3)
    with pytest.raises(RuntimeError, match="2 of 3"):
        survey_run.check({"fe_h": np.array([0, np.nan, 0])}, 3)


class Commands:
    """Stands in for new processes of specjax; remembers their arguments."""

    def __init__(self):
        self.ran = []

    def specjax(self, *arguments, cache):
        self.ran.append([str(each) for each in arguments])
        memory = 1000.0 + len(self.ran)
        return processes.Finished(seconds=2.0, cpu=3.0, memory=memory, out="")


def test_rows_of_processes(monkeypatch):
    commands = Commands()
    monkeypatch.setattr(processes, "specjax", commands.specjax)
    rows = list(surveys.number_rows((5, 20), 2, few=20))
    assert [row.what for row in rows] == [
        names.survey(kind, count) for count in (5, 20) for kind in (names.RAW, names.PREPARED)
    ]
    assert [len(row.times["specjax"]) for row in rows] == [2, 2, 1, 1]
    # Raw and prepared files alternate.
    assert ["prepared" in words[1] for words in commands.ran] == [False, True] * 3
    assert rows[0].memory == {"specjax": 1003.0}
    (row,) = surveys.seed_rows((4,), 2)
    assert row.count == 4
    assert len(row.times["specjax"]) == 2
    assert row.first == {"specjax": 2.0}
    assert commands.ran[-1][0] == "adapt"
    assert commands.ran[-1][commands.ran[-1].index("--seeds") + 1] == "4"


@pytest.mark.slow
@pytest.mark.parametrize("letter", "fghij")
def test_sections_of_new_processes_run(letter):
    rows = list(getattr(sections.Bench(QUICK), letter)())
    assert {row.section for row in rows} == {letter}
    if letter == "f":
        known = [row.what for row in rows]
        assert names.LONGEST_COMPILATION in known
        assert names.predict_process(cold.FEW_SPECTRA, "filled", 2) in known
