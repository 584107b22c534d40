"""Converted models with an adapter of several seeds, for every network that LoRA adapts."""

import jax
import numpy as np

import specjax
from checkpoints_convert import convert
from specjax import lora
from specjax.checkpoints import save_adapter
from tests.checkpoints_convert import files

SEEDS = 3

# Kind of file, head added to it, groups of the adapter, and the part of the model to export.
CASES = {
    "lamost": ("lamost", None, ("lora1",), "lamost"),
    "lamost head": ("lamost", "head", ("lora1", "lora2"), "mlp1"),
    "base": ("base", None, ("lora1", "lora3"), "specclip"),
    "pr": ("pr", None, ("lora1", "lora3"), "specclip"),
    "split": ("split", None, ("lora1", "lora3"), "specclip"),
    "pr head": ("pr", "head", ("lora1", "lora3", "lora4"), "mlp2"),
    "head": ("head", None, ("lora4",), "mlp2"),
}


def make(tmp_path, case):
    """Write model and adapter folders; return the PyTorch module of the part, the model and all factors."""
    kind, head, groups, part = CASES[case]
    options = {}
    if head:
        options = {"head": files.save(tmp_path / "head.pt", "head", files.make("head")), "labels": ["fe_h"]}
    source = files.save(tmp_path / f"{kind}.ckpt", kind, files.make(kind))
    convert(source, tmp_path / "model", **options)
    model = specjax.load(tmp_path / "model")
    configs = {group: model.config.loras[group] for group in groups}
    shapes = jax.eval_shape(lambda p: lora.init_adapters(jax.random.key(0), p, configs), model.params)
    rng = np.random.default_rng(1)
    stacked = jax.tree.map(lambda leaf: rng.normal(0, 0.2, (SEEDS, *leaf.shape)).astype(np.float32), shapes)
    record = {"configuration": "+".join(groups), "label": "fe_h", "seeds": SEEDS, "sigma": 0.1}
    save_adapter(tmp_path / "adapter", config=record, arrays=stacked, base=model.digest)
    return files.make("head" if part.startswith("mlp") else kind), model, stacked


def one(stacked, seed):
    """Return the factors of one seed."""
    return jax.tree.map(lambda leaf: leaf[seed], stacked)
