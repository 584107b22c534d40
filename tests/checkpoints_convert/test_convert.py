"""Recognise, convert, refuse and export published files; test_parity.py compares what they compute."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

import specjax
from specjax.config import XP_TRANSFORMER, SpecFormerConfig
from specjax.errors import ModelError, SpecjaxError

torch = pytest.importorskip("torch")

from checkpoints_convert import convert, open_torch_file  # noqa: E402
from checkpoints_convert.__main__ import main  # noqa: E402
from checkpoints_convert.export import encoder_hyper_parameters, export_checkpoint  # noqa: E402
from tests.checkpoints_convert import files  # noqa: E402


def converted(tmp_path, kind):
    convert(files.save(tmp_path / f"{kind}.ckpt", kind, files.make(kind)), tmp_path / kind)
    return specjax.load(tmp_path / kind)


@pytest.mark.parametrize("kind", files.KINDS)
def test_sizes_come_from_the_file(tmp_path, kind):
    config, expected = converted(tmp_path, kind).config, files.sizes(kind)
    parts = {
        "lamost": ["specformer"],
        "xp_transformer": ["xp_transformer"],
        "xp_autoencoder": ["xp_autoencoder"],
        "head": ["head"],
    }.get(kind, ["specformer", "xp_autoencoder", "projection", "decoder"])
    if files.PARTS[kind] == "specclip":  # whose file does not specify the masks of pretraining
        config = replace(config, specformer=replace(config.specformer, mask_width=files.LAMOST.mask_width))
    for part in parts:
        assert getattr(config, part) == getattr(expected, part)


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (
            SpecFormerConfig(),
            {"input_dim": 21, "max_len": 150, "mask_chunk_width": 10}
            | {"slice_section_length": 20, "slice_overlap": 10},
        ),
        (XP_TRANSFORMER, {"input_dim": 1, "max_len": 350, "mask_chunk_width": 20, "include_stats": True}),
    ],
)
def test_hyper_parameters_have_the_published_names_and_values(config, own):
    shared = {"embed_dim": 768, "num_layers": 6, "num_heads": 6, "mask_num_chunks": 6}
    assert encoder_hyper_parameters(config) == {**shared, "dropout": 0.0, "norm_first": True, **own}


def test_a_base_model_has_no_decoders(tmp_path):
    with pytest.raises(ModelError, match="decoders"):
        converted(tmp_path, "base").reconstruct(np.ones((1, 1462)))


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("kind", files.KINDS)
def test_the_round_trip_is_exact(tmp_path, kind):
    module = files.make(kind)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(123456)
    convert(files.save(tmp_path / "a.ckpt", kind, module), tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "b.ckpt")
    content = torch.load(tmp_path / "b.ckpt", weights_only=True)
    state = content["model_state_dict" if kind == "head" else "state_dict"]
    assert_same_state(state, module.state_dict())
    files.make(kind, seed=5).load_state_dict(state, strict=True)
    # The exported file determines the same configuration.
    convert(tmp_path / "b.ckpt", tmp_path / "again")
    assert specjax.load(tmp_path / "again").config == specjax.load(tmp_path / "model").config


def test_a_label_head_is_exported_with_its_stats(tmp_path):
    stats = {"mean": np.linspace(-1, 1, 24).tolist(), "std": np.linspace(0.5, 2, 24).tolist()}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    head = files.make("head")
    path = files.save(tmp_path / "feh.pt", "head", head)
    source = files.save(tmp_path / "lrs.ckpt", "lamost", files.make("lamost"))
    convert(source, tmp_path / "model", head=path, stats=tmp_path / "stats.json", labels=["fe_h"])
    assert export_checkpoint(tmp_path / "model", tmp_path / "back.pt", part="mlp1") == "mlp1"
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    files.make("head", 5).load_state_dict(back["model_state_dict"], strict=True)
    assert_same_state(back["model_state_dict"], head.state_dict())
    for name, values in stats.items():
        torch.testing.assert_close(back["stats"][name], torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_round_trips_of_other_types(tmp_path, dtype):
    module = files.make("lamost").to(dtype)
    convert(files.save(tmp_path / "a.ckpt", "lamost", module), tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "b.ckpt")
    assert_same_state(torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"], module.state_dict())


def spoil(path, change):
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)
    return path


def test_all_wrong_keys_are_named_at_once(tmp_path):
    def change(content):
        state = content["state_dict"]
        del state["final_layernorm.bias"], state["blocks.1.ln2.weight"]
        state["blocks.0.attention.q_proj.bias"] = torch.zeros(7)
        state["extra.weight"] = torch.zeros(1)

    path = spoil(files.save(tmp_path / "a.ckpt", "lamost", files.make("lamost")), change)
    with pytest.raises(ModelError) as caught:
        convert(path, tmp_path / "out")
    for name in (
        "final_layernorm.bias",
        "blocks.1.ln2.weight",
        "q_proj.bias is [7], not [24]",
        "extra.weight",
    ):
        assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_transposed_matrix_is_refused(tmp_path):
    def change(content):
        weight = content["state_dict"]["blocks.0.mlp.0.weight"]
        content["state_dict"]["blocks.1.mlp.0.weight"] = weight.T

    path = spoil(files.save(tmp_path / "a.ckpt", "lamost", files.make("lamost")), change)
    with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.0\.weight is \[24, 40\], not \[40, 24\]"):
        convert(path, tmp_path / "out")


def test_numbers_of_attention_heads_are_never_guessed(tmp_path):
    path = files.save(tmp_path / "a.ckpt", "lamost", files.make("lamost"))
    spoil(path, lambda content: content["hyper_parameters"].pop("num_heads"))
    with pytest.raises(ModelError, match="attention heads"):
        convert(path, tmp_path / "out")


def test_files_without_a_model_are_refused(tmp_path):
    torch.save({"weights": {"a": torch.zeros(3)}}, tmp_path / "none.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"N.")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_text("")
    cases = {
        "none": "no state_dict",
        "other": "none of the published",
        "legacy": "legacy",
        "script": "TorchScript",
        "text": "not a PyTorch file",
        "empty": "empty",
        "missing": "No such file",
    }
    for name, reason in cases.items():
        with pytest.raises(SpecjaxError, match=reason):
            convert(tmp_path / f"{name}.pt", tmp_path / "out")


def test_invalid_stats_are_refused(tmp_path):
    path = files.save(tmp_path / "head.pt", "head", files.make("head"))
    for text in ("{", "[]", '{"mean": 1}', '{"mean": [1, 2], "std": [1, 1]}', '{"mean": ["a"], "std": [1]}'):
        (tmp_path / "stats.json").write_text(text)
        with pytest.raises(ModelError, match=r"stats\.json"):
            convert(path, tmp_path / "out", stats=tmp_path / "stats.json")


def test_the_command(tmp_path, capsys):
    path = files.save(tmp_path / "pr.ckpt", "pr", files.make("pr"))
    assert main([str(path), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "SpecCLIP pr" in listed
    assert "params/lamost/projection/cross_attention/v_proj/kernel (transposed)" in listed
    assert len(listed.splitlines()) == 1 + len(open_torch_file(path).state_dict())
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert specjax.load(tmp_path / "out").config.name == "specclip_pr"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(config["sources"]["model"]["sha256"]) == 64
    capsys.readouterr()
    (tmp_path / "bad.ckpt").write_bytes(path.read_bytes()[:-1000])
    assert main([str(tmp_path / "bad.ckpt"), "--out", str(tmp_path / "bad")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "bad.ckpt" in captured.err
    assert not (tmp_path / "bad").exists()
