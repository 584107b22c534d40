"""Merge adapters into exported files, and subtract them again."""

import dataclasses

import jax
import numpy as np
import pytest

import specjax
from specjax import lora
from specjax.checkpoints import flatten
from specjax.errors import ModelError
from specjax.models import SpecFormer, tokenise

torch = pytest.importorskip("torch")

from checkpoints_convert import convert  # noqa: E402
from checkpoints_convert.export import export_checkpoint, main  # noqa: E402
from tests.checkpoints_convert import files  # noqa: E402
from tests.checkpoints_convert.adapters import CASES, make, one  # noqa: E402
from tests.checkpoints_convert.comparing import assert_close, run_torch, spectra  # noqa: E402

# Kernels of order 1 in float32: one rounding is 6e-8, adding and subtracting a product of rank 16 a few.
EXACT = {"rtol": 1e-6, "atol": 1e-6}


def export_merged(tmp_path, case, seed):
    """Write the merged file with the command and return its state_dict."""
    folders = [str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter")]
    out = tmp_path / "merged.ckpt"
    assert main([*folders, "--seed", str(seed), "--part", CASES[case][3], "--out", str(out)]) == 0
    content = torch.load(out, weights_only=True)
    return content.get("state_dict") or content["model_state_dict"]


@pytest.mark.parametrize("case", CASES)
def test_merge_and_unmerge(tmp_path, case):
    """The merged file loads into the published modules, has the kernels of our merge, and can be unmerged."""
    module, model, stacked = make(tmp_path, case)
    merged = export_merged(tmp_path, case, seed=2)
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(merged, strict=True)
    part = CASES[case][3]
    options = {"head_name": part} if part.startswith("mlp") else {}
    convert(tmp_path / "merged.ckpt", tmp_path / "again", **options)
    again = specjax.load(tmp_path / "again")
    factors = one(stacked, 2)
    ours, theirs, base_kernels = (
        {path: np.asarray(leaf) for path, leaf in flatten(tree)}
        for tree in (model.adapted(factors).params, again.params, model.params)
    )
    leaves = dict(flatten(factors))
    layers = sorted({path.rpartition("/")[0] for path in leaves})
    changed = [layer for layer in layers if f"{layer}/kernel" in theirs]  # the others belong to another part
    for layer in changed:
        kernel, scale = f"{layer}/kernel", model.config.loras[lora.target_group(layer)].scale
        np.testing.assert_allclose(theirs[kernel], ours[kernel], **EXACT)
        product = scale * leaves[f"{layer}/lora_a"] @ leaves[f"{layer}/lora_b"]
        assert np.abs(product).max() > 0.1  # the product matters
        np.testing.assert_allclose(theirs[kernel] - product, base_kernels[kernel], **EXACT)
    # Tensors that are not adapted are unchanged, bit for bit.
    different = [name for name in base if not torch.equal(base[name], merged[name])]
    assert changed
    assert len(different) == len(changed)


def test_a_merged_file_agrees_with_the_adapted_model(tmp_path):
    """Compare with the unmerged model, which adds the low-rank term in each layer."""
    module, model, stacked = make(tmp_path, "lamost")
    module.load_state_dict(export_merged(tmp_path, "lamost", seed=1), strict=True)
    config = model.config.specformer
    params = lora.combine(model.params, one(stacked, 1))["lamost"]["backbone"]
    adapted = SpecFormer(config, lora=model.config.lora1)
    ours = jax.jit(lambda p: adapted.apply({"params": p}, tokenise(spectra(2), config)))(params)
    assert_close(ours, run_torch(module, spectra(2))[0]["embedding"])


def test_another_attention_scale_is_folded_into_the_queries(tmp_path):
    """A model with attention scaled once gives the same results in the modules, which scale twice."""
    module, model, _ = make(tmp_path, "lamost")
    once = dataclasses.replace(model.config.specformer, logit_scale=8**-0.5)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, specformer=once))
    model.save(tmp_path / "once")
    export_checkpoint(tmp_path / "once", tmp_path / "once.ckpt")
    module.load_state_dict(torch.load(tmp_path / "once.ckpt", weights_only=True)["state_dict"])
    expected = run_torch(module, spectra(2))[0]["embedding"]
    assert_close(model.tokens(spectra(2)), expected)


def test_towers_with_a_flux_scale_cannot_be_exported(tmp_path):
    _, model, _ = make(tmp_path, "lamost")
    scaled = dataclasses.replace(model.config.specformer, flux_scale=0.2)
    dataclasses.replace(model, config=dataclasses.replace(model.config, specformer=scaled)).save(
        tmp_path / "scaled"
    )
    with pytest.raises(ModelError, match="lamost scales flux by a constant"):
        export_checkpoint(tmp_path / "scaled", tmp_path / "scaled.ckpt")
    assert not (tmp_path / "scaled.ckpt").exists()


def test_errors_of_the_command_are_one_line(tmp_path, capsys):
    make(tmp_path, "lamost")
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


def test_members_of_an_ensemble_are_exported_one_by_one(tmp_path):
    """There is one file per member, in physical units; their mean is the prediction of the model."""
    _, model, _ = make(tmp_path, "lamost head")
    members, label = 3, {"label_mean": np.array([-0.5]), "label_std": np.array([0.7])}
    head = dataclasses.replace(model.config.head, members=members)
    rng = np.random.default_rng(0)

    def spread(leaf):
        return np.stack([leaf * (1 + 0.2 * rng.random(leaf.shape)) for _ in range(members)], dtype=np.float32)

    variables = {
        name: {**tree, "mlp1": jax.tree.map(spread, tree["mlp1"])}
        for name, tree in model.variables.items()
        if name in ("params", "batch_stats")
    }
    config = dataclasses.replace(model.config, head=head)
    ensemble = dataclasses.replace(model, config=config, variables=variables, stats={"mlp1": label})
    ensemble.save(tmp_path / "ensemble")
    out = tmp_path / "member.pt"
    for wrong in (None, 3, -1):
        with pytest.raises(ModelError, match="--member"):
            export_checkpoint(tmp_path / "ensemble", out, part="mlp1", member=wrong)
    x = spectra(4, 24)
    predictions = []
    for member in range(members):
        export_checkpoint(tmp_path / "ensemble", out, part="mlp1", member=member)
        module = files.make("head")
        module.load_state_dict(torch.load(out, weights_only=True)["model_state_dict"], strict=True)
        predictions.append(run_torch(module, x)[0].numpy())
    assert_close(ensemble.predict_from_features(x, "mlp1")["fe_h"], np.mean(predictions, axis=0)[:, 0])
