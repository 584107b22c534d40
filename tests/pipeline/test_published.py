"""`specjax check-published` with small networks in the published layout, on files like the authors' data."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
from astropy.table import Table

from checkpoints_convert.torch_writer import write_torch_file
from specjax import cli
from specjax.config import LabelHeadConfig, SpecFormerConfig, XPAutoencoderConfig
from specjax.services.specclip import HEADS, MODELS, REPOSITORY, TEST_DATA
from tests.checkpoints_convert import golden
from tests.services.hub_server import running_hub, use

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.usefixtures("quick_compilation")

DIM = 6  # of the vectors of the small models


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The published files by name, with networks of a few numbers on the published grids."""
    former = SpecFormerConfig(dim=DIM, num_layers=1, num_heads=2, mlp_dim=8, max_len=150)
    grids = {
        "specformer": former,
        "xp_autoencoder": XPAutoencoderConfig(hidden_dim=5, latent_dim=DIM, expansion=2, num_blocks=1),
    }
    for kind in ("pr", "split"):
        monkeypatch.setitem(golden.CONFIGS, kind, dataclasses.replace(golden.CONFIGS[kind], **grids))
    head = dataclasses.replace(
        golden.CONFIGS["head"], head=LabelHeadConfig(hidden_dims=(6, 6, 6), num_labels=1)
    )
    monkeypatch.setitem(golden.CONFIGS, "head", head)
    files = {}
    for name, path in [*((kind, MODELS[kind]) for kind in MODELS), ("head", "head")]:
        write_torch_file(tmp_path / "file", golden.content_of(name))
        files[path] = (tmp_path / "file").read_bytes()
    content = files.pop("head")
    for one in HEADS:
        files[one.file] = content
        files[one.stats] = json.dumps({"mean": [0.0] * DIM, "std": [1.0] * DIM}).encode()
    return files


@pytest.fixture
def pairs(tmp_path):
    """Six pairs as in the authors' data set, one of them with a missing pixel."""
    rng = np.random.default_rng(0)
    lamost = (1 + 0.1 * rng.normal(size=(6, 1462))).astype(np.float32)
    lamost[2, 7] = np.nan
    with h5py.File(tmp_path / "pairs.h5", "w") as file:
        file["test/source_ids"] = np.arange(6) + 4295806720
        file["test/lamost_spectra"] = lamost
        file["test/gaia_spectra"] = (1 + 0.1 * rng.normal(size=(6, 343))).astype(np.float32)
    return {"gaia_lamost_test_only.h5": (tmp_path / "pairs.h5").read_bytes()}


@pytest.mark.parametrize("models", ["split", pytest.param("pr split", marks=pytest.mark.slow)])
def test_random_networks_run_from_the_hub_and_are_found_not_to_agree(
    models, published, pairs, tmp_path, monkeypatch, capsys
):
    with running_hub() as server:
        server.add(published, REPOSITORY)
        server.add(pairs, TEST_DATA, "datasets")
        use(server, monkeypatch, tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        line = f"check-published --limit 4 -o {tmp_path}/labels.ecsv --models {models}"
        assert cli.main(line.split()) == 1
    out, err = capsys.readouterr()
    assert "comparisons are no better than their reference" in err.splitlines()[-1]
    heads = [head for head in HEADS if head.model in models.split()]
    assert all(f"{name}, 4 pairs" in out for name in models.split())
    assert "Gaia XP flux from LAMOST" in out
    assert ("fe_h, LAMOST against Gaia XP" in out) == ("pr" in models)
    table = Table.read(tmp_path / "labels.ecsv")
    assert table["id"].tolist() == [str(4295806720 + row) for row in (0, 1, 3, 4)]  # whole pairs only
    assert set(table.colnames) == {"id", *(f"{head.label}_{head.survey}" for head in heads)}
    assert all(np.isfinite(table[name]).all() for name in table.colnames[1:])


def test_wrong_options_are_one_line(tmp_path, capsys):
    for words, message in (
        (["--limit", "1"], "at least two pairs"),
        (["--data", str(tmp_path)], r"has no .h5 file"),
    ):
        assert cli.main(["check-published", *words]) == 1
        assert message in capsys.readouterr().err
