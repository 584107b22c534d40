"""Forward passes with the adapters of S seeds: one program, vmapped over seeds, with unmerged factors.

The base parameters are not batched, so that products with them are large matrix products over all seeds, and
only the low-rank products are made per seed. Adaptation is evaluated with the same programs as prediction.

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
from specjax.adapt.buckets import padded
from specjax.adapt.tower import Entry, head_output, tower_features
from specjax.batching import inference_batch_size
from specjax.config import ModelConfig
from specjax.foundation import BackboneFeatures, Foundation, ModelInput, SpectraLike
from specjax.foundation.inference import FEW_ROWS, NEUTRAL_STATS, in_batches
from specjax.foundation.networks import Networks, module_dtype
from specjax.models.tokens import tokenise
from specjax.typing import Float32Array, FloatArray, IntArray, Tree

MANY_ROWS = 256
"""Spectra whose features go through the heads of all seeds at once; twice as many leave a CPU's cache."""


def count_seeds(adapters: Tree) -> int:
    """Return S; 1 for an empty adapter."""
    leaves = jax.tree.leaves(adapters)
    return len(leaves[0]) if leaves else 1


def backbone(model: Foundation, adapters: Tree, data: ModelInput) -> BackboneFeatures:
    """Run the LAMOST backbone with each seed's adapter on n spectra: leaves (S, n, ...)."""
    seeds = count_seeds(adapters)
    program = _backbone_program(model.config, model.dtype)
    run = functools.partial(program, np.arange(seeds), {"lamost": model.params["lamost"]}, adapters)
    features: BackboneFeatures = in_batches(run, (_rows_at_once(model, seeds),), *data, axis=1)
    return features


def features(
    model: Foundation,
    heads: tuple[str, ...],
    adapters: Tree,
    inputs: Tree,
    entry: Entry,
    rows: IntArray,
    *,
    own: bool = False,
) -> dict[str, Float32Array]:
    """Run spectra from an entry of the tower to the features of heads, with the adapter of each seed.

    Args:
        model: the base model.
        heads: heads whose features are wanted.
        adapters: leaves (S, ...).
        inputs: of n spectra at the entry, leaves (n, ...).
        entry: where the tower is entered.
        rows: (S, b) spectra of each seed.
        own: the inputs are those of each seed, leaves (S, n, ...).

    Returns:
        {head: (S, b, d)}, not standardised.
    """
    seeds, count = rows.shape
    program = _features_program(model.config, heads, entry, model.dtype, own)
    frozen = {"lamost": model.params["lamost"]}
    most = padded(count)
    size = min(_rows_at_once(model, seeds), most) if entry.is_in_backbone else most
    parts = []
    for start in range(0, count, size):
        part = rows[:, start : start + size]
        filled = np.pad(part, [(0, 0), (0, size - part.shape[1])])
        run = program(np.arange(seeds), frozen, adapters, inputs, filled)
        parts.append({head: np.asarray(leaf)[:, : part.shape[1]] for head, leaf in run.items()})
    return {head: np.concatenate([part[head] for part in parts], axis=1) for head in heads}


def run_head(model: Foundation, head: str, adapters: Tree, features: Float32Array) -> Float32Array:
    """Map standardised features (S, n, d) to standardised labels (S, n, labels) with each seed's head."""
    chex.assert_rank(features, 3)
    frozen, stats = {head: model.params[head]}, {head: model.variables["batch_stats"][head]}
    mine = {head: adapters[head]} if head in adapters else {}
    filled = np.pad(features, [(0, 0), (0, padded(features.shape[1]) - features.shape[1]), (0, 0)])
    labels = _head_program(model.config, head)(np.arange(len(features)), frozen, mine, stats, filled)
    return np.asarray(labels)[:, : features.shape[1]]


def standardise_features(model: Foundation, head: str, features: Float32Array) -> Float32Array:
    """Standardise features (..., d) as those that the head was trained on."""
    stats = head_stats(model, head)
    mean, std = (np.asarray(stats[name], np.float32) for name in ("feature_mean", "feature_std"))
    standardised: Float32Array = (features - mean) / std
    return standardised


def label_scale(model: Foundation, head: str, label: str) -> tuple[float, float]:
    """Return the mean and the standard deviation that standardise a label for a head."""
    stats, labels = head_stats(model, head), model.config.labels
    mean, std = (np.broadcast_to(stats[name], len(labels)) for name in ("label_mean", "label_std"))
    column = labels.index(label)
    return float(mean[column]), float(std[column])


def predict_label(
    model: Foundation,
    heads: tuple[str, ...],
    adapters: Tree,
    spectra: SpectraLike | ModelInput,
    label: str,
    base: BackboneFeatures | None = None,
) -> FloatArray:
    """Predict a label of n spectra with each seed's adapter, averaged over heads: (S, n), in physical units.

    Args:
        model: the base model.
        heads: heads to average over.
        adapters: leaves (S, ...).
        spectra: n spectra, as `Foundation.embed` takes them, or as `Foundation.model_input` returns them.
        label: one of the model's labels.
        base: `Foundation.backbone_features` of the same spectra. The seeds share them unless their adapters
            change the backbone.
    """
    own_backbone = changes_backbone(adapters)
    data: tuple[Any, ...]
    if own_backbone:
        data = spectra if isinstance(spectra, ModelInput) else model.model_input(spectra)
        sizes = _tower_batches(model, adapters)
    else:
        data, sizes = base or model.backbone_features(spectra), (*FEW_ROWS, MANY_ROWS)
    program = _label_program(model.config, heads, model.dtype, own_backbone)
    stats = {head: _label_stats(model, head, label) for head in heads}
    seeds, batch_stats = np.arange(count_seeds(adapters)), model.variables.get("batch_stats", {})
    run = functools.partial(program, seeds, model.params, adapters, batch_stats, stats)
    return np.asarray(in_batches(run, sizes, *data, axis=1), np.float64)


def changes_backbone(adapters: Tree) -> bool:
    """Say whether an adapter changes `BackboneFeatures`, as all but LoRA3 and the heads' do."""
    towers = {name: tree for name, tree in adapters.items() if name not in lora.HEADS}
    return not set(jax.tree.leaves(lora.partition_labels(towers))) <= {"lora3"}


def head_stats(model: Foundation, head: str) -> Mapping[str, Any]:
    """Return the statistics of a head; those that the model lacks are 0 and 1."""
    known = model.stats.get(head, {})
    return {name: known.get(name, neutral) for name, neutral in NEUTRAL_STATS.items()}


def _rows_at_once(model: Foundation, seeds: int) -> int:
    return max(1, inference_batch_size(model.config, np.dtype(model.dtype).itemsize) // seeds)


def _tower_batches(model: Foundation, adapters: Tree) -> tuple[int, ...]:
    most = _rows_at_once(model, count_seeds(adapters))
    return (*(rows for rows in FEW_ROWS if rows < most), most)


def _label_stats(model: Foundation, head: str, label: str) -> dict[str, Any]:
    mean, std = label_scale(model, head, label)
    column = np.int32(model.config.labels.index(label))
    scale = {"label_mean": np.float32(mean), "label_std": np.float32(std)}
    return {**head_stats(model, head), **scale, "column": column}


@functools.cache
def _label_program(
    config: ModelConfig, heads: tuple[str, ...], dtype: str, own_backbone: bool
) -> Callable[..., jax.Array]:
    """Compile (seeds (S,), base, adapters, batch_stats, stats, *data) -> labels (S, n).

    The data are `ModelInput` for adapters with a backbone of their own, else `BackboneFeatures` of the base
    model. The statistics of a head hold the label's column in its output: all labels have one program.
    """
    entry = Entry("tokens" if own_backbone else "backbone")

    def one_seed(
        _: jax.Array, base: Tree, adapters: Tree, batch_stats: Tree, stats: Tree, *data: jax.Array
    ) -> jax.Array:
        params = lora.overlay(base, adapters)
        if own_backbone:
            flux, valid = data
            inputs = {"tokens": tokenise(flux, config.specformer, valid)}
        else:
            inputs = BackboneFeatures(*data)._asdict()
        features = tower_features(config, dtype, params, inputs, entry, heads)
        labels = []
        for head in heads:
            x = (features[head] - stats[head]["feature_mean"]) / stats[head]["feature_std"]
            y = head_output(config, head, params, batch_stats, x)
            y = jax.lax.dynamic_index_in_dim(y, stats[head]["column"], axis=1, keepdims=False)
            labels.append(y * stats[head]["label_std"] + stats[head]["label_mean"])
        return jnp.stack(labels).mean(axis=0)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, None, None, None, None)))


@functools.cache
def _backbone_program(config: ModelConfig, dtype: str) -> Callable[..., BackboneFeatures]:
    def one_seed(
        _: jax.Array, frozen: Tree, adapters: Tree, flux: jax.Array, valid: jax.Array
    ) -> BackboneFeatures:
        variables = {"params": lora.overlay(frozen, adapters)}
        return Networks(config, variables, module_dtype(dtype)).lamost_features(flux, valid)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, None, None)))


@functools.cache
def _features_program(
    config: ModelConfig, heads: tuple[str, ...], entry: Entry, dtype: str, own: bool
) -> Callable[..., dict[str, jax.Array]]:
    def one_seed(
        _: jax.Array, frozen: Tree, adapters: Tree, inputs: Tree, rows: jax.Array
    ) -> dict[str, jax.Array]:
        params = lora.overlay(frozen, adapters)
        mine = jax.tree.map(lambda leaf: leaf[rows], inputs)
        return tower_features(config, dtype, params, mine, entry, heads)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, 0 if own else None, 0)))


@functools.cache
def _head_program(config: ModelConfig, head: str) -> Callable[..., jax.Array]:
    def one_seed(_: jax.Array, frozen: Tree, adapters: Tree, stats: Tree, features: jax.Array) -> jax.Array:
        return head_output(config, head, lora.overlay(frozen, adapters), stats, features)

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None, 0, None, 0)))
