"""Adapters on their way to PyTorch, merged or as PEFT folders, and back."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import specjax
from specjax import lora
from specjax.checkpoints import load_adapter, save_adapter
from specjax.errors import ModelError
from specjax.models import SpecFormer, tokenise

torch = pytest.importorskip("torch")

from checkpoints_convert import convert  # noqa: E402
from checkpoints_convert.export import export_checkpoint, main  # noqa: E402
from checkpoints_convert.peft_folder import export_adapter, import_adapter  # noqa: E402
from tests.checkpoints_convert import files  # noqa: E402

SEEDS = 3
# float32 sums in another order, on outputs of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def make(tmp_path, kind, groups, **options):
    """Return the PyTorch module, the model folder and an adapter folder with all seeds stacked."""
    module = files.make(kind)
    convert(files.save(tmp_path / f"{kind}.ckpt", kind, module), tmp_path / "model", **options)
    model = specjax.load(tmp_path / "model")
    configs = {group: model.config.loras[group] for group in groups}
    tree = lora.init_adapters(jax.random.key(0), model.params, configs)
    rng = np.random.default_rng(1)
    stacked = jax.tree.map(lambda leaf: rng.normal(0, 0.2, (SEEDS, *leaf.shape)).astype(np.float32), tree)
    record = {"configuration": "+".join(groups), "label": "fe_h", "seeds": SEEDS, "sigma": 0.1}
    save_adapter(tmp_path / "adapter", config=record, arrays=stacked, base=model.digest)
    return module, model, stacked


def adapted_tokens(model, factors, flux):
    """The tokens of the unmerged model, the low-rank term beside the kernels."""
    config = model.config.specformer
    params = lora.combine(model.params, factors)["lamost"]["backbone"]
    module = SpecFormer(config, lora=model.config.lora1)
    return jax.jit(lambda p: module.apply({"params": p}, tokenise(flux, config)))(params)


def spectra(n=2, pixels=1462):
    return np.random.default_rng(0).normal(0.9, 0.15, (n, pixels)).astype(np.float32)


def one(stacked, seed):
    return jax.tree.map(lambda leaf: leaf[seed], stacked)


def test_a_merged_file_does_what_the_adapted_model_does(tmp_path):
    module, model, stacked = make(tmp_path, "lamost", ["lora1"])
    arguments = [str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter"), "--seed", "2"]
    assert main([*arguments, "--out", str(tmp_path / "merged.ckpt")]) == 0
    merged = torch.load(tmp_path / "merged.ckpt", weights_only=True)["state_dict"]
    module.load_state_dict(merged, strict=True)
    with torch.no_grad():
        expected = module(torch.from_numpy(spectra()))["embedding"].numpy()
    np.testing.assert_allclose(adapted_tokens(model, one(stacked, 2), spectra()), expected, **CLOSE)
    # The same kernels as our own merge, to one rounding in float32.
    ours = model.adapted(one(stacked, 2)).params["lamost"]["backbone"]["blocks_1"]["attention"]["kv_proj"]
    np.testing.assert_allclose(ours["kernel"].T, merged["blocks.1.attention.kv_proj.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "groups"), [("lamost", ["lora1"]), ("pr", ["lora1", "lora3"]), ("head", ["lora4"])]
)
def test_a_peft_folder_comes_back_bit_for_bit(tmp_path, kind, groups):
    _, _, stacked = make(tmp_path, kind, groups)
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft", seed=1)
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back")
    back = load_adapter(tmp_path / "back")
    assert back.config["configuration"] == "+".join(groups)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[1]), back.arrays, stacked)


def test_peft_loads_our_folder(tmp_path):
    peft = pytest.importorskip("peft")
    module, model, stacked = make(tmp_path, "lamost", ["lora1"])
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft", seed=1)
    wrapped = peft.PeftModel.from_pretrained(module, tmp_path / "peft")
    wrapped.eval()
    with torch.no_grad():
        expected = wrapped(torch.from_numpy(spectra()))["embedding"].numpy()
    np.testing.assert_allclose(adapted_tokens(model, one(stacked, 1), spectra()), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["pr", "split"])
def test_peft_merges_groups_of_different_ranks(tmp_path, kind):
    peft = pytest.importorskip("peft")
    module, _, _ = make(tmp_path, kind, ["lora1", "lora3"])
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft")
    export_checkpoint(tmp_path / "model", tmp_path / "merged.ckpt", adapter=tmp_path / "adapter")
    ours = torch.load(tmp_path / "merged.ckpt", weights_only=True)["state_dict"]
    files.make(kind).load_state_dict(ours, strict=True)
    merged = peft.PeftModel.from_pretrained(module, tmp_path / "peft").merge_and_unload().state_dict()
    assert ours.keys() == merged.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8), (3, 5)])
def test_an_adapter_of_peft_imports(tmp_path, rank, alpha):
    """Of the model's own rank and alpha, and of others; one that leaves layers of the group alone, too."""
    peft = pytest.importorskip("peft")
    module, model, _ = make(tmp_path, "lamost", ["lora1"])
    targets = ["q_proj", "kv_proj"] if rank == 3 else ["q_proj", "kv_proj", "out_proj"]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
    wrapped = peft.get_peft_model(module, config)
    wrapped.eval()
    wrapped.save_pretrained(tmp_path / "peft")
    import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back")
    factors = one(load_adapter(tmp_path / "back", base=model.digest).arrays, 0)
    with torch.no_grad():
        expected = wrapped(torch.from_numpy(spectra()))["embedding"].numpy()
    np.testing.assert_allclose(adapted_tokens(model, factors, spectra()), expected, **CLOSE)


def test_another_factor_on_the_logits_is_folded_into_the_queries(tmp_path):
    """A model trained with attention scaled once does the same in modules that scale twice."""
    module, model, _ = make(tmp_path, "lamost", ["lora1"])
    once = dataclasses.replace(model.config.specformer, logit_scale=8**-0.5)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, specformer=once))
    model.save(tmp_path / "once")
    export_checkpoint(tmp_path / "once", tmp_path / "once.ckpt")
    module.load_state_dict(torch.load(tmp_path / "once.ckpt", weights_only=True)["state_dict"])
    with torch.no_grad():
        expected = module(torch.from_numpy(spectra()))["embedding"].numpy()
    np.testing.assert_allclose(model.tokens(spectra()), expected, **CLOSE)


def test_what_does_not_fit_is_said(tmp_path, capsys):
    make(tmp_path, "lamost", ["lora1"])
    model, adapter = str(tmp_path / "model"), str(tmp_path / "adapter")
    out = str(tmp_path / "out.ckpt")
    for options, reason in {
        f"{model} --out {out} --adapter {adapter} --seed 3": "seeds 0 to 2",
        f"{model} --out {out} --part mlp2": "no part 'mlp2'",
        f"{model} --out {out} --peft": "--adapter",
        f"{adapter} --out {out}": "not a specjax-model",
        f"{tmp_path}/nowhere --out {out}": "no model folder",
    }.items():
        assert main(options.split()) == 1
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "no LoRA"),
        ({"alpha_pattern": {".*": 3}}, "no name of a module"),
        ({"lora_alpha": "x"}, "no number"),
    ],
)
def test_peft_settings_that_have_no_place(tmp_path, change, reason):
    make(tmp_path, "lamost", ["lora1"])
    export_adapter(tmp_path / "model", tmp_path / "adapter", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    config = {**json.loads(path.read_text()), "alpha_pattern": {}, **change}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=reason):
        import_adapter(tmp_path / "peft", tmp_path / "model", tmp_path / "back")
    assert not (tmp_path / "back").exists()
