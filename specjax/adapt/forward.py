"""Forward passes with the adapters of S seeds: one program, vmapped over seeds, with unmerged factors.

The base parameters are not batched, so that products with them are large matrix products over all seeds, and
only the low-rank products are made per seed. Adaptation trains on the features made here, and prediction uses
the same programs.

An adapter is a tree of low-rank factors, or of leaves that replace those of the model, each with a leading
axis S. The programs also take the numbers of the seeds and do not use them: `vmap` counts the seeds of an
empty adapter by them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.batching import inference_batch_size
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.foundation import BackboneFeatures, Foundation, ModelInput, SpectraLike
from specjax.foundation.inference import FEW_ROWS, NEUTRAL_STATS, in_batches
from specjax.foundation.networks import Networks, module_dtype
from specjax.models.apply import apply
from specjax.models.label_head import LabelHead
from specjax.models.projection import LamostProjection
from specjax.typing import FloatArray, Tree

Groups = tuple[str, ...]

MANY_ROWS = 512
"""Spectra whose features go through the heads of all seeds at once."""


def groups_of(adapters: Tree) -> Groups:
    """Return the LoRA groups that an adapter holds factors of, sorted."""
    labels = set(jax.tree.leaves(lora.partition_labels(adapters)))
    return tuple(sorted(labels & set(LORA_GROUPS)))


def count_seeds(adapters: Tree) -> int:
    """Return S; 1 for an empty adapter."""
    leaves = jax.tree.leaves(adapters)
    return len(leaves[0]) if leaves else 1


def backbone(model: Foundation, adapters: Tree, data: ModelInput) -> BackboneFeatures:
    """Run the LAMOST backbone with each seed's adapter on n spectra: leaves (S, n, ...)."""
    seeds, itemsize = count_seeds(adapters), np.dtype(model.dtype).itemsize
    program = _backbone_program(model.config, groups_of(adapters), model.dtype)
    run = functools.partial(program, np.arange(seeds), {"lamost": model.params["lamost"]}, adapters)
    size = max(1, inference_batch_size(model.config, itemsize) // seeds)
    features: BackboneFeatures = in_batches(run, (size,), *data, axis=1)
    return features


def project(model: Foundation, adapters: Tree, mixed: Any) -> jax.Array:
    """Project pooled tokens (S, n, dim), or (1, n, dim) for all seeds, with each adapter: (S, n, dim)."""
    chex.assert_rank(mixed, 3)
    seeds = count_seeds(adapters) if adapters else len(mixed)
    program = _projection_program(model.config, groups_of(adapters), model.dtype)
    frozen = {"lamost": {"projection": model.params["lamost"]["projection"]}}
    return program(np.arange(seeds), frozen, adapters, jnp.broadcast_to(mixed, (seeds, *mixed.shape[1:])))


def run_head(model: Foundation, head: str, adapters: Tree, features: jax.Array) -> jax.Array:
    """Map standardised features (S, n, d) to standardised labels (S, n, labels) with each seed's head."""
    chex.assert_rank(features, 3)
    program = _head_program(model.config, head, groups_of(adapters))
    frozen, stats = {head: model.params[head]}, model.variables["batch_stats"][head]
    return program(np.arange(len(features)), frozen, adapters, stats, features)


def standardise_features(model: Foundation, head: str, features: Any) -> jax.Array:
    """Standardise features (..., d) as those that the head was trained on."""
    stats = _stats(model, head)
    standardised: jax.Array = (features - stats["feature_mean"]) / stats["feature_std"]
    return standardised


def label_scale(model: Foundation, head: str, label: str) -> tuple[float, float]:
    """Return the mean and the standard deviation that standardise a label for a head."""
    stats, labels = _stats(model, head), model.config.labels
    mean, std = (np.broadcast_to(stats[name], len(labels)) for name in ("label_mean", "label_std"))
    column = labels.index(label)
    return float(mean[column]), float(std[column])


def predict_label(
    model: Foundation,
    heads: tuple[str, ...],
    adapters: Tree,
    spectra: SpectraLike,
    label: str,
    base: BackboneFeatures | None = None,
) -> FloatArray:
    """Predict a label of n spectra with each seed's adapter, averaged over heads: (S, n), in physical units.

    Args:
        model: the base model.
        heads: heads to average over.
        adapters: leaves (S, ...).
        spectra: n spectra, as `Foundation.embed` takes them.
        label: one of the model's labels.
        base: `Foundation.backbone_features` of the same spectra. The seeds share them unless their adapters
            change the backbone.
    """
    own_backbone = changes_backbone(adapters)
    data: tuple[Any, ...]
    if own_backbone:
        data, sizes = model.model_input(spectra), _tower_batches(model, adapters)
    else:
        data, sizes = base or model.backbone_features(spectra), (*FEW_ROWS, MANY_ROWS)
    program = _label_program(model.config, heads, groups_of(adapters), label, model.dtype, own_backbone)
    stats = {head: _head_stats(model, head, label) for head in heads}
    seeds, batch_stats = np.arange(count_seeds(adapters)), model.variables.get("batch_stats", {})
    run = functools.partial(program, seeds, model.params, adapters, batch_stats, stats)
    return np.asarray(in_batches(run, sizes, *data, axis=1), np.float64)


def changes_backbone(adapters: Tree) -> bool:
    """Say whether an adapter changes `BackboneFeatures`, as all but LoRA3 and the heads' do."""
    towers = {name: tree for name, tree in adapters.items() if name not in lora.HEADS}
    return not set(jax.tree.leaves(lora.partition_labels(towers))) <= {"lora3"}


def _tower_batches(model: Foundation, adapters: Tree) -> tuple[int, ...]:
    most = max(1, inference_batch_size(model.config, np.dtype(model.dtype).itemsize) // count_seeds(adapters))
    return (*(rows for rows in FEW_ROWS if rows < most), most)


def _head_stats(model: Foundation, head: str, label: str) -> dict[str, Any]:
    mean, std = label_scale(model, head, label)
    return {**_stats(model, head), "label_mean": np.float32(mean), "label_std": np.float32(std)}


@functools.cache
def _label_program(
    config: ModelConfig, heads: tuple[str, ...], groups: Groups, label: str, dtype: str, own_backbone: bool
) -> Callable[..., jax.Array]:
    """Compile (seeds (S,), base, adapters, batch_stats, stats, *data) -> labels (S, n).

    The data are `ModelInput` for adapters with a backbone of their own, else `BackboneFeatures` of the base
    model.
    """
    lora1 = config.lora1 if "lora1" in groups else None
    projection, column = projection_module(config, groups, dtype), config.labels.index(label)

    def one_seed(
        _: jax.Array, base: Tree, adapters: Tree, batch_stats: Tree, stats: Tree, *data: jax.Array
    ) -> jax.Array:
        params = lora.overlay(base, adapters)
        networks = Networks(config, {"params": params}, module_dtype(dtype), lora1)
        features = networks.lamost_features(*data) if own_backbone else BackboneFeatures(*data)
        labels = []
        for head in heads:
            x = features.mean
            if head == "mlp2":
                tower = {"params": params["lamost"]["projection"]}
                x = apply(projection, tower, features.mixed, method="project")
            x = (x - stats[head]["feature_mean"]) / stats[head]["feature_std"]
            variables = {"params": params[head], "batch_stats": batch_stats[head]}
            y = apply(head_module(config, head, groups), variables, x)[:, column]
            labels.append(y * stats[head]["label_std"] + stats[head]["label_mean"])
        return jnp.stack(labels).mean(axis=0)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, None, None, None, None)))


def _stats(model: Foundation, head: str) -> Mapping[str, Any]:
    return {**NEUTRAL_STATS, **model.stats.get(head, {})}


@functools.cache
def _backbone_program(config: ModelConfig, groups: Groups, dtype: str) -> Callable[..., BackboneFeatures]:
    lora1 = config.lora1 if "lora1" in groups else None

    def one_seed(
        _: jax.Array, frozen: Tree, adapters: Tree, flux: jax.Array, valid: jax.Array
    ) -> BackboneFeatures:
        variables = {"params": lora.overlay(frozen, adapters)}
        return Networks(config, variables, module_dtype(dtype), lora1).lamost_features(flux, valid)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, None, None)))


@functools.cache
def _projection_program(config: ModelConfig, groups: Groups, dtype: str) -> Callable[..., jax.Array]:
    module = projection_module(config, groups, dtype)

    def one_seed(_: jax.Array, frozen: Tree, adapters: Tree, mixed: jax.Array) -> jax.Array:
        params = lora.overlay(frozen, adapters)["lamost"]["projection"]
        return apply(module, {"params": params}, mixed, method="project")

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, 0)))


@functools.cache
def _head_program(config: ModelConfig, head: str, groups: Groups) -> Callable[..., jax.Array]:
    network = head_module(config, head, groups)

    def one_seed(_: jax.Array, frozen: Tree, adapters: Tree, stats: Tree, features: jax.Array) -> jax.Array:
        params = lora.overlay(frozen, adapters)[head]
        return apply(network, {"params": params, "batch_stats": stats}, features)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, None, 0)))


def projection_module(config: ModelConfig, groups: Groups, dtype: str) -> LamostProjection:
    """Return the LAMOST projection, with LoRA3 if it is among the groups."""
    return LamostProjection(
        config.projection, config.lora3 if "lora3" in groups else None, module_dtype(dtype)
    )


def head_module(config: ModelConfig, head: str, groups: Groups) -> LabelHead:
    """Return a label head, with its LoRA group if it is among the groups."""
    group = lora.HEAD_GROUPS[head]
    return LabelHead(config.head, lora=config.loras[group] if group in groups else None)
