"""Runs of the published stages with tiny models, on files in the published layout."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from specjax import config as configs
from specjax.config import XP_TRANSFORMER, ProjectionConfig
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation import load
from specjax.pretrain import from_files
from specjax.pretrain.from_files import FilesConfig, pretrain_from_files
from specjax.pretrain.monitor import read
from specjax.pretrain.states import check_states, states_of
from tests.models.tiny import SMALL
from tests.pretrain.files import write

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "paper": SMALL,
    "base": dataclasses.replace(SMALL, decoder=None),
    "split": dataclasses.replace(
        SMALL,
        projection=ProjectionConfig(shared_dim=8, private_dim=8, num_heads=(2, 2), feature_hidden=12),
    ),
    "xp-transformer": dataclasses.replace(
        SMALL,
        decoder=None,
        xp_transformer=dataclasses.replace(XP_TRANSFORMER, dim=8, num_layers=1, num_heads=2, mlp_dim=8),
    ),
}
SHORT = {"steps": 6, "batch": 8, "report_every": 3, "save_every": 3, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(from_files, "get_preset", TINY.__getitem__)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("files") / "pairs.h5", {"train": 96, "val": 64})


def run(out, pairs, say=lambda text: None, resume=False, **options):
    config = FilesConfig(spectra=(pairs,), **{**SHORT, **options})
    return pretrain_from_files(config, out=out, resume=resume, say=say)


def leaves(model):
    return flatten_dict(jax.tree.map(np.asarray, dict(model.variables)), sep="/")


def stop_after(text):
    def say(line):
        if line.startswith(text):
            raise KeyboardInterrupt

    return say


def test_one_stage_makes_a_bare_encoder_with_its_curves(pairs, tmp_path):
    said = []
    made = run(tmp_path / "m", pairs, said.append, stages=("backbone",))
    assert said[0] == "96 spectra to train on, 64 held out"
    model = load(tmp_path / "m")
    chex.assert_trees_all_equal(leaves(model), leaves(made))
    assert list(model.params) == ["lamost"]
    assert list(model.params["lamost"]) == ["backbone"]
    logs = tmp_path / "m" / "training"
    assert sorted(path.name for path in logs.iterdir()) == [
        "curves.png", "metrics.jsonl", "probes.json", "reconstruction.pdf", "reconstruction.png"
    ]  # fmt: skip
    assert [line["step"] for line in read(logs)] == [3, 6]
    assert not (tmp_path / "m.training").exists()
    probes = json.loads((logs / "probes.json").read_text())
    assert probes.keys() == {"linear teff R2", "linear teff sigma", "linear fe_h R2", "linear fe_h sigma"}


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(pairs, tmp_path):
    whole = run(tmp_path / "whole", pairs, stages=("backbone",), augment=True)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", pairs, stop_after("backbone 3/6"), stages=("backbone",), augment=True)
    said = []
    options = {"stages": ("backbone",), "augment": True}
    with pytest.raises(DataError, match="continue it with --resume"):
        run(tmp_path / "killed", pairs, **options)
    with pytest.raises(DataError, match="a run with other options"):
        run(tmp_path / "killed", pairs, resume=True, stages=("backbone",))
    resumed = run(tmp_path / "killed", pairs, said.append, resume=True, **options)
    assert "backbone: resuming after step 3" in said
    chex.assert_trees_all_equal(leaves(resumed), leaves(whole))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "base", "split"])
def test_all_stages_of_a_preset_run_in_sequence_and_apart(pairs, tmp_path, preset):
    stages = ("backbone", "autoencoder", "alignment", "heads")
    options = {"preset": preset, "labels": ("teff", "fe_h")}
    whole = run(tmp_path / "whole", pairs, stages=stages, **options)
    start = ()
    for stage in stages:
        run(tmp_path / stage, pairs, stages=(stage,), start=start, **options)
        start = (*start, tmp_path / stage)
    apart = load(tmp_path / "heads")
    chex.assert_trees_all_equal(leaves(apart), leaves(whole))
    flux = from_files.Source.open([pairs]).examples(("lamost",), 8)["flux"]
    for head in ("mlp1", "mlp2"):
        assert np.isfinite(apart.predict(flux, head)["fe_h"]).all()
    if preset != "base":
        assert apart.translate(flux, source="lamost", target="gaia_xp").shape == (8, 343)


@pytest.mark.slow
def test_the_xp_transformer_is_trained_by_masked_modelling(tmp_path):
    path = write(tmp_path / "xp.h5", {"train": 96}, towers=("gaia_xp",))
    config = FilesConfig(preset="xp-transformer", xp=(path,), stages=("xp-transformer",), **SHORT)
    pretrain_from_files(config, out=tmp_path / "m")
    model = load(tmp_path / "m")
    assert list(model.params) == ["gaia_xp"]
    assert model.reconstruct(np.ones((2, 343), np.float32), "gaia_xp").shape == (2, 343)


@pytest.mark.slow
def test_the_published_objective_teaches_the_backbone_the_spectra(tmp_path):
    """Hidden tokens of held-out spectra are predicted better and better from the visible ones."""
    path = write(tmp_path / "pairs.h5", {"train": 1024, "val": 64}, towers=("lamost",))
    run(tmp_path / "m", path, stages=("backbone",), steps=300, batch=32, report_every=50, learning_rate=5e-3)
    losses = [line["held-out loss"] for line in read(tmp_path / "m" / "training")]
    # At the first report the model has learnt the mean spectrum. One block of width 16 reaches 0.81 of that.
    assert losses[-1] < 0.9 * losses[0]


def test_what_does_not_go_together_is_refused_before_anything_is_trained(pairs, tmp_path):
    out = tmp_path / "m"
    for error, message, options in (
        (ConfigError, "there is no stage backbones", {"stages": ("backbones",)}),
        (ConfigError, "needs the columns", {"stages": ("heads",)}),
        (ConfigError, "needs a trained lamost/backbone: add the stage backbone", {"stages": ("alignment",)}),
        (ConfigError, "has no stage xp-transformer", {"stages": ("xp-transformer",)}),
        (ConfigError, "has no stage alignment", {"preset": "xp-transformer", "stages": ("alignment",)}),
        (ConfigError, "96 spectra do not fill a batch of 128", {"stages": ("backbone",), "batch": 128}),
        (ConfigError, "batch must be at least 1", {"batch": 0}),
        (DataError, "has no column colour", {"stages": ("backbone", "heads"), "labels": ("colour",)}),
        (ModelError, "there is no model folder", {"stages": ("backbone",), "start": (tmp_path / "no",)}),
    ):
        with pytest.raises(error, match=message):
            run(out, pairs, **options)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("simulated", [True, False])
def test_an_interrupted_run_is_refused_before_anything_is_read_or_simulated(tmp_path, simulated):
    check_states(states_of(tmp_path / "m"), "{}", resume=False)
    files = () if simulated else (tmp_path / "absent.h5",)
    said = []
    with pytest.raises(DataError, match="continue it with --resume"):
        pretrain_from_files(
            FilesConfig(spectra=files, simulated=simulated), out=tmp_path / "m", say=said.append
        )
    assert said == []


def test_a_model_of_other_sizes_is_not_a_start(pairs, tmp_path):
    run(tmp_path / "m", pairs, stages=("backbone",), steps=1)
    TINY["wide"] = dataclasses.replace(SMALL, specformer=dataclasses.replace(SMALL.specformer, dim=32))
    with pytest.raises(ModelError, match=r"does not fit the preset 'small': lamost/backbone/.*shape"):
        run(tmp_path / "n", pairs, stages=("backbone",), preset="wide", start=(tmp_path / "m",))
    del TINY["wide"]


@pytest.mark.parametrize(
    ("preset", "parameters"), [("paper", 168_293_752), ("split", 126_229_506), ("base", None)]
)
def test_the_presets_have_the_published_sizes(preset, parameters):
    from specjax.models.specclip import SpecCLIP

    config = configs.get_preset(preset)
    flux = jax.ShapeDtypeStruct((1, 1462), np.float32), jax.ShapeDtypeStruct((1, 343), np.float32)
    shapes = jax.eval_shape(SpecCLIP(config).init, jax.random.key(0), *flux)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == parameters if parameters else 90e6 < count < 110e6


def test_published_schedules_are_those_of_the_publication():
    config = FilesConfig(preset="paper").training()
    backbone, autoencoder, alignment = config.backbone, config.autoencoder, config.alignment
    assert (backbone.steps, backbone.batch, round(backbone.warmup * backbone.steps)) == (980_000, 512, 9760)
    assert (backbone.learning_rate, backbone.weight_decay, backbone.clip) == (1e-5, 0.1, 1.0)
    assert (autoencoder.steps, autoencoder.batch) == (1_960_000, 256)
    assert round(autoencoder.warmup * autoencoder.steps) == 19_520
    assert (alignment.batch, alignment.learning_rate, alignment.weight_decay) == (1024, 1e-4, 0.05)
    assert (config.masked_rows, config.masked_weight, config.label_weight, config.xp_noise) == (1, 1, 0, 0)
