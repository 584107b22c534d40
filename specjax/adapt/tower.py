"""The LAMOST tower entered at any level: what is frozen below the first adapted layer runs only once.

A program of the adaptation reads the inputs of that layer, which were computed once for all steps and seeds:

| level    | inputs                                        | first adapted layer                       |
|----------|-----------------------------------------------|-------------------------------------------|
| tokens   | {"tokens": (n, t, token_dim)}                 | the embedding (full fine-tuning)          |
| block    | {"hidden": (n, t, dim)} of that block         | attention of a transformer block (LoRA1)  |
| backbone | {"mean": (n, dim), "mixed": (n, dim)}         | projection (LoRA3)                        |
| features | {head: (n, d)}, not standardised              | a label head (LoRA2, LoRA4)               |
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import jax
from flax.traverse_util import flatten_dict

from specjax import lora
from specjax.config import ModelConfig
from specjax.foundation.networks import module_dtype
from specjax.models.apply import apply
from specjax.models.label_head import LabelHead
from specjax.models.products import token_mean
from specjax.models.projection import LamostProjection
from specjax.models.specformer import SpecFormer
from specjax.typing import Tree

_BLOCK = re.compile(r"lamost/backbone/blocks_(\d+)/")


@dataclass(frozen=True)
class Entry:
    """Where a program enters the tower: a level and, for "block", which one."""

    level: Literal["tokens", "block", "backbone", "features"]
    block: int = 0

    @property
    def is_in_backbone(self) -> bool:
        """Whether the transformer, or a part of it, runs in every step."""
        return self.level in ("tokens", "block")


def entry_of(trained: Tree) -> Entry:
    """Return the highest level from which a program reaches all leaves of a tree of trained leaves."""
    paths = flatten_dict(trained, sep="/")
    backbone = [path for path in paths if path.startswith("lamost/backbone/")]
    if backbone:
        blocks = [_BLOCK.match(path) for path in backbone]
        if all(blocks):
            return Entry("block", min(int(found.group(1)) for found in blocks if found))
        return Entry("tokens")
    return Entry("backbone" if "lamost" in trained else "features")


def tower_inputs(config: ModelConfig, dtype: str, params: Tree, tokens: jax.Array, entry: Entry) -> Tree:
    """Run tokens (n, t, token_dim) up to an entry in the backbone."""
    if entry.level == "tokens":
        return {"tokens": tokens}
    network = SpecFormer(config.specformer, lora=config.lora1, dtype=module_dtype(dtype))
    variables = {"params": params["lamost"]["backbone"]}
    return {"hidden": apply(network, variables, tokens, entry.block, method="to_block")}


def tower_features(
    config: ModelConfig, dtype: str, params: Tree, inputs: Tree, entry: Entry, heads: Iterable[str]
) -> dict[str, jax.Array]:
    """Run the inputs of n spectra at an entry to the features {head: (n, d)}, not standardised.

    `params` holds the tower, from the entry on, with the factors that adapt it.
    """
    if entry.level == "features":
        return {head: inputs[head] for head in heads}
    kind = module_dtype(dtype)
    projection = LamostProjection(config.projection, lora=config.lora3, dtype=kind)
    if entry.is_in_backbone:
        network = SpecFormer(config.specformer, lora=config.lora1, dtype=kind)
        backbone = {"params": params["lamost"]["backbone"]}
        if entry.level == "tokens":
            x = apply(network, backbone, inputs["tokens"])
        else:
            x = apply(network, backbone, inputs["hidden"], entry.block, method="from_block")
        inputs = {"mean": token_mean(x)}
        if "mlp2" in heads:
            inputs["mixed"] = apply(projection, _projection(params), x, method="mix")
    features = {"mlp1": inputs["mean"]}
    if "mlp2" in heads:
        features["mlp2"] = apply(projection, _projection(params), inputs["mixed"], method="project")
    return {head: features[head] for head in heads}


def _projection(params: Tree) -> Tree:
    return {"params": params["lamost"]["projection"]}


def head_output(
    config: ModelConfig, head: str, params: Tree, batch_stats: Tree, features: jax.Array
) -> jax.Array:
    """Map standardised features (n, d) to standardised labels (n, labels) with a label head."""
    module = LabelHead(config.head, lora=config.loras[lora.HEAD_GROUPS[head]])
    return apply(module, {"params": params[head], "batch_stats": batch_stats[head]}, features)
