"""Alignment that starts from converted published encoders, small ones with random weights."""

import dataclasses

import chex
import numpy as np
import pytest

pytest.importorskip("torch")

from checkpoints_convert import convert
from specjax.foundation import load
from specjax.pretrain import from_files
from specjax.pretrain.from_files import FilesConfig, pretrain_from_files
from tests.checkpoints_convert.files import published, save
from tests.models.tiny import SMALL
from tests.pretrain.files import write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


def test_published_encoders_are_a_start_for_the_alignment(tmp_path, monkeypatch):
    sizes = dataclasses.replace(SMALL, decoder=None)
    monkeypatch.setattr(from_files, "get_preset", lambda name: sizes)
    modules = {
        "lamost": published.SpecFormer(sizes.specformer),
        "xp_autoencoder": published.XPAutoencoder(sizes.xp_autoencoder),
    }
    start = []
    for kind, module in modules.items():
        convert(save(tmp_path / f"{kind}.ckpt", kind, published.randomised(module, 0)), tmp_path / kind)
        start.append(tmp_path / kind)
    pairs = write(tmp_path / "pairs.h5", {"train": 96, "val": 16})
    options = {"steps": 4, "batch": 8, "report_every": 2, "learning_rate": 1e-3}
    config = FilesConfig(
        preset="base", spectra=(pairs,), stages=("alignment",), start=tuple(start), **options
    )
    pretrain_from_files(config, out=tmp_path / "base")
    model = load(tmp_path / "base")
    for tower, folder in zip(("lamost", "gaia_xp"), start, strict=True):
        encoder = load(folder).params[tower]["backbone"]
        chex.assert_trees_all_equal(model.params[tower]["backbone"], encoder)  # frozen in this stage
    assert np.isfinite(model.embed(np.ones((2, 1462), np.float32))).all()
