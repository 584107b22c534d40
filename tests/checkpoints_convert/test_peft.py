"""Export and import PEFT folders, with the real library."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specjax import lora
from specjax.checkpoints import flatten, load_adapter, save_adapter
from specjax.errors import ModelError

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from checkpoints_convert.export import export_checkpoint  # noqa: E402
from checkpoints_convert.model_folder import ModelFolder  # noqa: E402
from checkpoints_convert.peft_folder import _layers, export_adapter, import_adapter  # noqa: E402
from tests.checkpoints_convert.adapters import CASES, make, one  # noqa: E402
from tests.checkpoints_convert.comparing import assert_close, run_torch, spectra  # noqa: E402

# float32: PEFT and specjax round the same product in different orders.
EXACT = {"rtol": 1e-6, "atol": 1e-6}


def merged_here(tmp_path, adapter, part):
    """Export a file with a merged adapter and return its state_dict."""
    export_checkpoint(tmp_path / "model", tmp_path / "merged.ckpt", adapter=adapter, part=part)
    content = torch.load(tmp_path / "merged.ckpt", weights_only=True)
    return content.get("state_dict") or content["model_state_dict"]


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_export_to_peft(tmp_path, case):
    """The library merges our folder to the same weights as specjax, and unmerges it."""
    module, _, _ = make(tmp_path, case)
    part = CASES[case][3]
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft", part=part)
    wrapped = peft.PeftModel.from_pretrained(module, tmp_path / "peft")
    wrapped.merge_adapter()
    wrapped.unmerge_adapter()
    for name, tensor in wrapped.get_base_model().state_dict().items():
        if "lora_" not in name:
            torch.testing.assert_close(tensor, base[name.replace(".base_layer", "")], msg=name, **EXACT)
    merged = wrapped.merge_and_unload().state_dict()
    assert_same_state(merged_here(tmp_path, tmp_path / "adapter", part), merged)
    different = [name for name in base if not torch.equal(base[name], merged[name])]
    assert len(different) == len(
        json.loads((tmp_path / "peft/adapter_config.json").read_text())["target_modules"]
    )


@pytest.mark.parametrize("case", CASES)
def test_import_from_peft(tmp_path, case):
    """Factors saved by the library are imported bit for bit and merge to the same weights."""
    module, model, _ = make(tmp_path, case)
    part = CASES[case][3]
    base = ModelFolder.load(tmp_path / "model")
    groups = {old: lora.target_group(new) for old, new in _layers(base.rows(part)).items()}
    groups = {module: model.config.loras[group] for module, group in groups.items() if group}
    config = peft.LoraConfig(
        target_modules=list(groups),
        rank_pattern={name: group.rank for name, group in groups.items()},
        alpha_pattern={name: group.alpha for name, group in groups.items()},
        init_lora_weights=False,  # both factors random
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(module, config)
    wrapped.save_pretrained(tmp_path / "peft")
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back", part=part)
    factors = dict(flatten(one(load_adapter(tmp_path / "back", base=model.digest).arrays, 0)))
    theirs = {name: tensor for name, tensor in wrapped.state_dict().items() if "lora_" in name}
    assert len(factors) == len(theirs) == 2 * len(groups)
    places = _layers(base.rows(part))
    for name in groups:
        for letter in "AB":
            tensor = theirs[f"base_model.model.{name}.lora_{letter}.default.weight"]
            ours = factors[f"{places[name]}/lora_{letter.lower()}"]
            np.testing.assert_array_equal(ours, tensor.detach().numpy().T)
    merged = wrapped.merge_and_unload().state_dict()
    assert_same_state(merged_here(tmp_path, tmp_path / "back", part), merged)


@pytest.mark.parametrize("case", CASES)
def test_the_round_trip_is_exact(tmp_path, case):
    _, _, stacked = make(tmp_path, case)
    part = CASES[case][3]
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft", seed=1, part=part)
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back", part=part)
    back, stacked = dict(flatten(load_adapter(tmp_path / "back").arrays)), dict(flatten(stacked))
    own = "mlp" if part.startswith("mlp") else "lamost"
    assert back.keys() == {path for path in stacked if path.startswith(own)}
    for path, factor in back.items():
        np.testing.assert_array_equal(factor[0], stacked[path][1])


def test_unmerged_factors_in_the_library(tmp_path):
    """Compare unmerged LoRA1 in the modules of the library with our merged model."""
    module, model, stacked = make(tmp_path, "lamost")
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft", seed=1)
    wrapped = peft.PeftModel.from_pretrained(module, tmp_path / "peft").eval()
    ours = model.adapted(one(stacked, 1)).tokens(spectra(2))
    with torch.no_grad():
        assert_close(ours, wrapped(torch.from_numpy(spectra(2)))["embedding"])


def test_factors_of_attention_pooling_act_in_peft_only_when_merged(tmp_path):
    """Torch's attention uses the weight of its output projection without calling it as a module.

    Unmerged, the library's factors of this projection thus have no effect, unlike the others of LoRA3.
    """
    module, model, stacked = make(tmp_path, "pr")
    flux, gaia_xp = spectra(2, 187), spectra(2, 41)
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft")
    wrapped = peft.PeftModel.from_pretrained(module, tmp_path / "peft").eval()
    factors = one(stacked, 0)
    whole = model.adapted(factors).embed(flux)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (not any(entry.key == "cross_attention" for entry in path)), factors
    )
    without = model.adapted(silent).embed(flux)
    assert np.abs(whole - without).max() > 0.01
    assert_close(without, run_torch(wrapped, flux, gaia_xp)[0]["z_lamost"])
    wrapped.merge_adapter()
    assert_close(whole, run_torch(wrapped, flux, gaia_xp)[0]["z_lamost"])


def test_import_with_another_rank_and_alpha_and_fewer_layers(tmp_path):
    module, _, _ = make(tmp_path, "lamost")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "kv_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(module, config).eval()
    wrapped.save_pretrained(tmp_path / "peft")
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back")
    merged = wrapped.merge_and_unload().state_dict()
    assert_same_state(merged_here(tmp_path, tmp_path / "back", "lamost"), merged)


@pytest.mark.parametrize("change", [-2, 3])
@pytest.mark.parametrize("case", ["lamost", "pr head"])
def test_the_round_trip_with_other_ranks(tmp_path, case, change):
    """As `--ranks` and `--fuse` make them: the products stay, and smaller ranks are padded."""
    _, model, stacked = make(tmp_path, case)
    part, rng = CASES[case][3], np.random.default_rng(3)
    groups = {group: model.config.loras[group] for group in CASES[case][2]}
    ranks = [(f"^{path}$", rank + change) for path, rank in lora.layer_ranks(model.params, groups).items()]
    shapes = jax.eval_shape(lambda p: lora.init_adapters(jax.random.key(0), p, groups, ranks), model.params)
    stacked = jax.tree.map(lambda leaf: rng.normal(0, 0.2, (1, *leaf.shape)).astype(np.float32), shapes)
    record = {"configuration": "+".join(groups), "label": "fe_h", "seeds": 1, "sigma": 0.1}
    save_adapter(tmp_path / "other", config=record, arrays=stacked, base=model.digest)
    export_adapter(tmp_path / "model", tmp_path / "other", tmp_path / "peft", part=part)
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back", part=part)
    stored = load_adapter(tmp_path / "back", base=model.digest)
    back, given = (dict(flatten(one(tree, 0))) for tree in (stored.arrays, stacked))
    own = "mlp" if part.startswith("mlp") else "lamost"
    layers = {path.removesuffix("/lora_a") for path in given if path.startswith(own) and path.endswith("a")}
    assert {path.rpartition("/")[0] for path in back} == layers
    for layer in layers:
        group = lora.target_group(layer)
        rank = back[f"{layer}/lora_a"].shape[-1]
        assert rank == groups[group].rank + max(change, 0)
        assert stored.config["lora"][group]["ranks"][layer] == rank
        assert stored.config["lora"][group]["scale"] == groups[group].scale
        products = [tree[f"{layer}/lora_a"] @ tree[f"{layer}/lora_b"] for tree in (back, given)]
        np.testing.assert_allclose(*products, **EXACT)


def test_a_fused_adapter_survives_the_round_trip(tmp_path):
    _, model, stacked = make(tmp_path, "head")
    fused = lora.fuse(stacked)
    record = {"configuration": "lora4", "label": "fe_h", "seeds": 1, "sigma": 0.1}
    save_adapter(tmp_path / "fused", config=record, arrays=fused, base=model.digest)
    export_adapter(tmp_path / "model", tmp_path / "fused", tmp_path / "peft", part="mlp2")
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back", part="mlp2")
    back = dict(flatten(load_adapter(tmp_path / "back").arrays))
    for path, factor in flatten(fused):
        known = np.zeros_like(back[path])
        known[tuple(slice(size) for size in factor.shape)] = factor  # padded where the layer's rank is small
        np.testing.assert_array_equal(back[path], known)


def test_predictions_of_an_imported_adapter_have_no_uncertainty(tmp_path):
    """Its scatter is not known, so that any number would be a wrong error bar."""
    from specjax.pipeline import predict_survey

    _, model, _ = make(tmp_path, "lamost head")
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft", part="mlp1")
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back", part="mlp1")
    imported = load_adapter(tmp_path / "back", base=model.digest)
    assert imported.config["sigma"] is None
    wavelength = np.arange(3700.0, 5800.0, 2.0)
    flux = 1 + 0.1 * np.sin(wavelength / 7) * np.ones((2, 1))
    np.savez(tmp_path / "two.npz", wavelength=wavelength, flux=flux, medium="vacuum", unit="angstrom")
    columns = predict_survey(
        model=tmp_path / "model",
        adapter=tmp_path / "back",
        spectra=[tmp_path / "two.npz"],
        out=tmp_path / "labels.fits",
        say=lambda _: None,
    )
    assert np.isfinite(columns["fe_h"]).all()
    assert np.isnan(columns["fe_h_err"]).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "not a LoRA"),
        ({"alpha_pattern": {".*": 3}}, "not the name of a module"),
        ({"lora_alpha": "x"}, "not a number"),
    ],
)
def test_unsupported_peft_settings_are_refused(tmp_path, change, reason):
    make(tmp_path, "lamost")
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    weights = path.with_name("adapter_model.safetensors")
    save_file(load_file(weights), weights)  # without our digest, like files of PEFT
    config = {**json.loads(path.read_text()), "alpha_pattern": {}, **change}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=reason):
        import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back")
    assert not (tmp_path / "back").exists()
