"""Published files through `convert` and `specjax.load` against the PyTorch modules they came from.

Tolerance: both compute in float32 and differ in the order of sums only; a few 1e-6 on outputs of order 1.
"""

import json
import zipfile

import jax
import numpy as np
import pytest

import specjax
from specjax.config import XP_TRANSFORMER
from specjax.errors import ModelError, SpecjaxError
from specjax.models import SpecCLIP

torch = pytest.importorskip("torch")

from checkpoints_convert import convert, open_torch_file  # noqa: E402
from checkpoints_convert.__main__ import main  # noqa: E402
from checkpoints_convert.export import export_checkpoint  # noqa: E402
from tests.checkpoints_convert import files  # noqa: E402

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def spectra(n, pixels, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.15, (n, pixels)).astype(np.float32)


def run(module, *inputs):
    with torch.no_grad():
        return module(*(torch.from_numpy(x) for x in inputs))


def converted(tmp_path, kind, **options):
    module = files.make(kind)
    path = files.save(tmp_path / f"{kind}.ckpt", kind, module)
    convert(path, tmp_path / kind, **options)
    return module, specjax.load(tmp_path / kind)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs.numpy(), **CLOSE)


@pytest.mark.parametrize("n", [1, 9])
def test_lamost_transformer(tmp_path, n):
    module, model = converted(tmp_path, "lamost")
    flux = spectra(n, 1462)
    expected = run(module, flux)
    close(model.tokens(flux), expected["embedding"])
    close(model.embed(flux), expected["embedding"].mean(1))
    close(model.reconstruct(flux, raw=True), expected["reconstructions"])
    assert model.config.specformer == files.LAMOST


def test_xp_transformer(tmp_path):
    module, model = converted(tmp_path, "xp_transformer")
    flux = spectra(2, 343)
    expected = run(module, flux)
    close(model.embed(flux, survey="gaia_xp"), expected["embedding"].mean(1))
    close(model.reconstruct(flux, survey="gaia_xp", raw=True), expected["reconstructions"])
    assert model.config.xp_transformer == files.XP
    assert files.XP.mask_width == XP_TRANSFORMER.mask_width


def test_xp_autoencoder(tmp_path):
    module, model = converted(tmp_path, "xp_autoencoder")
    flux = spectra(2, 343)
    expected = run(module, flux)
    close(model.embed(flux, survey="gaia_xp"), expected["latent"])
    close(model.reconstruct(flux, survey="gaia_xp", raw=True), expected["reconstructions"])


def test_specclip_base(tmp_path):
    module, model = converted(tmp_path, "base")
    lamost, gaia_xp = spectra(2, 1462), spectra(2, 343, 1)
    close(model.embed(lamost), run(module.lamost_lrs_encoder, lamost))
    close(model.embed(gaia_xp, survey="gaia_xp"), run(module.gaia_xp_encoder, gaia_xp))
    with pytest.raises(ModelError, match="decoders"):
        model.reconstruct(lamost)


@pytest.mark.parametrize("kind", ["pr", "split"])
def test_specclip(tmp_path, kind):
    module, model = converted(tmp_path, kind)
    lamost, gaia_xp = spectra(2, 1462), spectra(2, 343, 1)
    variables = {name: tree for name, tree in model.variables.items() if name != "stats"}
    z_lamost, z_xp, decoded = jax.jit(SpecCLIP(model.config).apply)(variables, lamost, gaia_xp)
    expected = run(module, lamost, gaia_xp)
    assert decoded.keys() | {"z_lamost", "z_xp"} == expected.keys()
    for name, value in {"z_lamost": z_lamost, "z_xp": z_xp, **decoded}.items():
        close(value, expected[name])


@pytest.mark.parametrize(("kind", "part"), [("lamost", "mlp1"), ("pr", "mlp2")])
def test_a_label_head_on_a_model(tmp_path, kind, part):
    head = files.make("head")
    path = files.save(tmp_path / "feh.pt", "head", head)
    stats = {"mean": np.linspace(-1, 1, 24).tolist(), "std": np.linspace(0.5, 2, 24).tolist()}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    module, model = converted(tmp_path, kind, head=path, stats=tmp_path / "stats.json", labels=["fe_h"])
    flux = spectra(3, 1462)
    features = run(module if kind == "lamost" else module.lamost_lrs_encoder, flux)
    features = features["embedding"].mean(1) if kind == "lamost" else features
    x = (features - torch.tensor(stats["mean"])) / torch.tensor(stats["std"])
    close(model.predict(flux, part)["fe_h"], head(x).detach()[:, 0])
    assert export_checkpoint(tmp_path / kind, tmp_path / "back.pt", part=part) == part
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    files.make("head", 5).load_state_dict(back["model_state_dict"], strict=True)
    assert_same_state(back["model_state_dict"], head.state_dict())
    torch.testing.assert_close(back["stats"]["mean"], torch.tensor(stats["mean"], dtype=torch.float64))


def test_a_label_head_by_itself(tmp_path):
    head, model = converted(tmp_path, "head", labels=["teff"], head_name="mlp1")
    x = spectra(3, 24)
    close(model.predict_from_features(x, "mlp1")["teff"], run(head, x)[:, 0])


def test_a_spectrum_without_contrast_is_finite(tmp_path):
    _, model = converted(tmp_path, "lamost")
    assert np.isfinite(model.embed(np.ones((1, 1462), np.float32))).all()


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("kind", files.KINDS)
def test_the_way_there_and_back_is_exact(tmp_path, kind):
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
    # What was written says everything that the first file said.
    convert(tmp_path / "b.ckpt", tmp_path / "again")
    assert specjax.load(tmp_path / "again").config == specjax.load(tmp_path / "model").config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_come_back_as_they_were(tmp_path, dtype):
    module = files.make("lamost").to(dtype)
    convert(files.save(tmp_path / "a.ckpt", "lamost", module), tmp_path / "model")
    export_checkpoint(tmp_path / "model", tmp_path / "b.ckpt")
    assert_same_state(torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"], module.state_dict())


def spoil(path, change):
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)
    return path


def test_all_keys_that_are_wrong_are_named_at_once(tmp_path):
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


def test_heads_of_attention_are_never_guessed(tmp_path):
    path = files.save(tmp_path / "a.ckpt", "lamost", files.make("lamost"))
    spoil(path, lambda content: content["hyper_parameters"].pop("num_heads"))
    with pytest.raises(ModelError, match="attention heads"):
        convert(path, tmp_path / "out")


def test_files_that_are_no_model(tmp_path):
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


def test_stats_that_do_not_fit(tmp_path):
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
