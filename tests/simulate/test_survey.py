import dataclasses
import json

import chex
import h5py
import jax
import numpy as np
import pytest
from astropy.table import Table

import specjax
from specjax.catalogues.labels import read_labels
from specjax.errors import ConfigError, DataError
from specjax.preprocess import to_lamost
from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.simulate import survey
from specjax.simulate.emulator import shipped
from specjax.simulate.instrument import PRESETS
from specjax.simulate.labels import LABELS
from specjax.simulate.observe import Optics
from specjax.simulate.population import LabelTable, MilkyWay, Ranges
from specjax.simulate.survey import simulate, simulate_spectra, simulate_survey
from specjax.surveys import arrays, prepared
from specjax.surveys.io.checksums import text

LAMOST = PRESETS["lamost"]

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A survey of 40 spectra in three chunks."""
    path = tmp_path_factory.mktemp("survey") / "s.h5"
    lines = []
    table = simulate_survey(path, instrument=LAMOST, n=40, seed=1, chunk=16, say=lines.append)
    return path, table, lines


def test_a_survey_is_read_back_with_its_labels(written):
    path, table, _ = written
    spectra = specjax.read(path)
    assert spectra.survey == "simulated-lamost"
    assert (spectra.medium, spectra.has_ivar, len(spectra)) == ("vacuum", True, 40)
    chex.assert_equal_shape([spectra.flux, spectra.ivar, spectra.mask])
    labels = read_labels(table)
    assert labels["id"].tolist() == spectra.id.tolist() == [f"sim-1-{k:07d}" for k in range(40)]
    for name in (*LABELS, "velocity", "snr"):
        np.testing.assert_array_equal(labels[name], spectra.meta[name])
    assert [str(labels[name].unit) for name in LABELS] == ["K", "dex", "dex", "dex", "km / s"]
    reported = spectra.meta["redshift"] * SPEED_OF_LIGHT - spectra.meta["velocity"]
    assert reported.std() == pytest.approx(LAMOST.velocity_error, rel=0.5)  # 40 numbers


def test_the_metadata_say_that_it_is_simulated(written):
    path, table, _ = written
    expected = survey.describe(LAMOST, MilkyWay(), shipped(), 1)
    assert expected["simulated"] == f"by specjax {specjax.__version__}"
    assert expected["emulator"] == shipped().digest != ""
    assert json.loads(expected["instrument"])["resolving_power"] == 1800
    with h5py.File(path) as file:
        assert {name: text(file.attrs[name]) for name in expected} == expected
    assert dict(Table.read(table).meta) == {"specjax": specjax.__version__, **expected}


@pytest.mark.parametrize("name", PRESETS)
def test_simulated_spectra_pass_the_preprocessing(name, tmp_path):
    path = tmp_path / "s.h5"
    simulate_survey(path, instrument=PRESETS[name], n=64, seed=2)
    grid = to_lamost(specjax.read(path), fwhm=PRESETS[name].fwhm)
    assert grid.meta["flag"].tolist() == ["good"] * 64
    assert np.median(grid.meta["masked_fraction"]) < 0.01
    # The continuum is at the upper envelope of the flux.
    assert 0.5 < grid.flux.mean(axis=1).min() < grid.flux.mean(axis=1).max() < 1.05


def test_the_size_of_a_chunk_does_not_matter(written, tmp_path):
    path, _, _ = written
    other = tmp_path / "s.h5"
    simulate_survey(other, instrument=LAMOST, n=25, seed=1, chunk=32)
    one, two = specjax.read(path)[:25], specjax.read(other)
    np.testing.assert_array_equal(one.meta["teff"], two.meta["teff"])
    np.testing.assert_array_equal(one.mask, two.mask)
    # Chunks differ by the rounding of the emulator's weighted sums.
    np.testing.assert_allclose(one.flux, two.flux, atol=1e-3)
    simulate_survey(other, instrument=LAMOST, n=25, seed=9)
    assert (specjax.read(other).meta["teff"] != two.meta["teff"]).all()


def test_npz_holds_the_same_as_hdf5(written, tmp_path):
    path, _, _ = written
    other = tmp_path / "s.npz"
    simulate_survey(other, instrument=LAMOST, n=40, seed=1, chunk=16)
    one, two = specjax.read(path), specjax.read(other)
    np.testing.assert_array_equal(one.flux, two.flux)
    np.testing.assert_array_equal(one.ivar, two.ivar)
    np.testing.assert_array_equal(one.mask, two.mask)
    assert one.id.tolist() == two.id.tolist()
    assert set(one.meta) == set(two.meta)
    with np.load(other) as file:
        assert str(file["simulated"]) == f"by specjax {specjax.__version__}"


def test_parts_of_a_file_can_be_read(written):
    path, _, _ = written
    whole, part = arrays.read(path), arrays.read(path, rows=(10, 13))
    np.testing.assert_array_equal(part.flux, whole.flux[10:13])
    assert part.id.tolist() == whole.id[10:13].tolist()
    assert not prepared.recognise(path)


def test_spectra_in_the_rest_frame_report_no_redshift(tmp_path):
    path = tmp_path / "s.h5"
    at_rest = dataclasses.replace(LAMOST, rest_frame=True)
    simulate_survey(path, instrument=at_rest, n=30)
    spectra = specjax.read(path)
    assert "redshift" not in spectra.meta
    assert np.abs(spectra.meta["velocity"]).max() < 5 * at_rest.velocity_error


def test_progress_states_the_range_and_the_rejected_stars(written):
    _, _, lines = written
    assert lines[0] == (
        "lamost: 1533 pixels, 3962-5638 A (of 3700-9095 A; the emulator does not cover the rest)"
    )
    assert lines[-1].startswith("simulated 40 spectra in ")


def test_one_program_of_bounded_size_serves_any_number_of_spectra():
    optics, _ = Optics.of(LAMOST, shipped())
    before = survey._observe._cache_size()
    for n in (40, 150):
        for batch in simulate(optics, MilkyWay(), shipped().domain, n=n, chunk=48):
            assert len(batch.flux) <= 48
    assert survey._observe._cache_size() == before + 1
    labels = np.zeros((64, 5), np.float32)
    program = survey._observe.lower(optics, jax.random.key(0), 0, labels, labels[:, 0]).compile()
    memory = program.memory_analysis()
    pixels = optics.wavelength.size
    assert memory.output_size_in_bytes < 64 * pixels * 9 + 64 * 12 + 1000
    # Some arrays of spectra and of covariances with the emulator's grid, and no more.
    assert memory.temp_size_in_bytes < 64 * 4 * 12 * max(optics.lines.shape[1], 5 * len(shipped().labels))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"out": "s.fits"}, ConfigError, "the suffix must be .h5, .hdf5 or .npz"),
        ({"n": 0}, ConfigError, "at least one"),
        ({"n": 2**31}, ConfigError, r"fewer than 2\*\*31"),
        ({"n": 2**31 - 1}, DataError, "GB, and only"),
        ({"seed": -1}, ConfigError, "seed must be"),
        ({"out": "s.npz", "n": 10**6}, ConfigError, "too many for .npz"),
        ({"population": Ranges({"teff": (9e3, 1e4)})}, DataError, "hardly any star"),
    ],
)
def test_a_survey_that_cannot_be_simulated_leaves_no_file(options, error, message, tmp_path):
    options = {"out": "s.h5", "n": 10, "instrument": LAMOST} | options
    with pytest.raises(error, match=message):
        simulate_survey(tmp_path / options.pop("out"), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["s.h5", "s.npz"])
def test_spectra_and_labels_appear_together(name, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(survey, "write_table", fail)
        with pytest.raises(OSError, match="the disk is full"):
            simulate_survey(tmp_path / name, instrument=LAMOST, n=4)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(arrays, "write", fail)
    monkeypatch.setattr(arrays.Stream, "add_columns", fail)
    with pytest.raises(OSError, match="the disk is full"):
        simulate_survey(tmp_path / name, instrument=LAMOST, n=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["s.h5", "s_labels.ecsv"])
def test_a_folder_is_not_replaced(folder, tmp_path):
    (tmp_path / folder).mkdir()
    said = []
    with pytest.raises(ConfigError, match=f"cannot write .*{folder}: it is a folder"):
        simulate_survey(tmp_path / "s.h5", instrument=LAMOST, n=4, say=said.append)
    assert said == []
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize(("name", "options"), [("s_labels.ecsv", {}), ("s.h5", {"path": "stars"})])
def test_the_table_of_the_stars_is_not_replaced(name, options, tmp_path):
    path = tmp_path / name
    Table({"teff": [5777.0], "logg": [4.44], "fe_h": [0.0]}).write(path, **options)
    stars, content = LabelTable.read(path, shipped().domain), path.read_bytes()
    with pytest.raises(ConfigError, match=f"{name} is the table of the stars"):
        simulate_survey(tmp_path / "s.h5", instrument=LAMOST, n=1, population=stars)
    assert path.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_spectra_in_memory_are_those_of_the_file(written):
    path, _, _ = written
    spectra, read = simulate_spectra(LAMOST, 40, seed=1, chunk=16), specjax.read(path)
    np.testing.assert_array_equal(spectra.flux, read.flux)
    assert spectra.survey == read.survey
    assert set(read.meta) - set(spectra.meta) == {"file"}
