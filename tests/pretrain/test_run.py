"""Runs of `pretrain` with tiny models and synthetic corpora in place of the libraries and the emulator."""

import dataclasses
import json

import numpy as np
import pytest

from specjax import config as configs
from specjax.errors import ConfigError, DataError, SpecjaxError
from specjax.foundation import load
from specjax.preprocess import PrincipalFill
from specjax.pretrain import from_files, run, stages
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.from_files import FilesConfig, pretrain_from_files
from specjax.pretrain.monitor import read
from specjax.report.metrics import robust_sigma
from tests import synthetic
from tests.pretrain.short_run import CONFIG, corpus

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(stages, "get_preset", lambda name: synthetic.CONFIG)
    monkeypatch.setattr(
        PretrainConfig, "of", lambda preset, **options: dataclasses.replace(CONFIG, **options)
    )


def made_from(pairs):
    def build(config, degraded, say):
        fill = PrincipalFill.fit(pairs.flux, np.zeros(pairs.flux.shape, bool), 3)
        return run.Corpus(make_data(pairs, config), fill, {})

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "corpus_of"), [("mini", "_observed"), ("mini-physics", "simulated_corpus")]
)
def test_a_run_writes_a_model_and_removes_its_states(monkeypatch, tmp_path, preset, corpus_of):
    monkeypatch.setattr(run, corpus_of, made_from(corpus()))
    run.pretrain(out=tmp_path / "model", preset=preset, degraded=False, held_out=0.25)
    model = load(tmp_path / "model")
    assert model.config == synthetic.CONFIG
    validation = make_data(corpus(), dataclasses.replace(CONFIG, held_out=0.25)).validation
    for head in ("mlp1", "mlp2"):  # of weights in half precision
        predicted = model.predict(np.asarray(validation.flux), head)
        scatter = [
            robust_sigma(predicted[name] - validation.labels[:, k]) for k, name in enumerate(predicted)
        ]
        np.testing.assert_allclose(list(model.label_scatter(head).values()), scatter, rtol=0.02)
    assert not (tmp_path / "model.training").exists()
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["training"]["augment"]["degraded_probability"] == 0


@pytest.mark.slow
def test_another_preset_is_trained_on_the_simulator(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "simulated_corpus", made_from(corpus()))
    monkeypatch.setattr(from_files, "get_preset", lambda name: synthetic.CONFIG)
    monkeypatch.setattr(from_files, "SIMULATED_LABELS", synthetic.CONFIG.labels)
    short = {"steps": 4, "batch": 8, "report_every": 2}
    config = FilesConfig(preset="split", simulated=True, stages=("backbone", "heads"), **short)
    pretrain_from_files(config, out=tmp_path / "model")
    model = load(tmp_path / "model")
    assert model.config.labels == synthetic.CONFIG.labels
    assert {"lamost", "mlp1"} <= model.params.keys()
    steps = [(line["stage"], line["step"]) for line in read(tmp_path / "model" / "training")]
    assert steps[:2] == [("backbone", 2), ("backbone", 4)]


def test_simulated_spectra_do_not_go_with_files():
    with pytest.raises(ConfigError, match="come without files"):
        FilesConfig(simulated=True, spectra=("a.h5",))


def test_an_interrupted_run_is_not_overwritten(tmp_path):
    (tmp_path / "model.training").mkdir()
    with pytest.raises(DataError, match="continue it with --resume"):
        run.pretrain(out=tmp_path / "model")


def test_an_interrupted_run_is_continued_with_its_own_options_only(monkeypatch, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(*given):
        raise StoppedError

    monkeypatch.setattr(run, "_observed", stop)
    for options in ({"seed": 1}, {"seed": 1, "resume": True}):
        with pytest.raises(StoppedError):
            run.pretrain(out=tmp_path / "model", **options)
    for options in ({"seed": 2}, {"seed": 1, "degraded": False}):
        with pytest.raises(DataError, match="a run with other options"):
            run.pretrain(out=tmp_path / "model", resume=True, **options)


def test_another_folder_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(run, "_observed", None)
    with pytest.raises(SpecjaxError, match="was not written by specjax"):
        run.pretrain(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_presets_that_cannot_be_trained_are_named(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"preset 'paper': name files with --spectra, or .*simulated; the .* are 'mini' and 'mini-phy",
    ):
        run.pretrain(out=tmp_path / "model", preset="paper")
    with pytest.raises(ConfigError, match="unknown preset"):
        run.pretrain(out=tmp_path / "model", preset="maxi")


def test_the_physics_preset_hides_whole_pixels_and_learns_four_labels():
    config = configs.get_preset("mini-physics")
    assert config.specformer.stride == config.specformer.window
    assert 2 * config.specformer.mask_chunks * config.specformer.mask_width >= config.specformer.num_windows
    assert config.labels == ("teff", "logg", "fe_h", "alpha_fe")
