"""The compiled programs and objectives of the adaptation, made once for their arguments.

`ensemble.fit` compiles once for each objective and optimizer, by identity: hence the caches.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from specjax import lora
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.models.label_head import LabelHead
from specjax.models.layers import tokenise
from specjax.models.specclip import SpecCLIP
from specjax.train import losses
from specjax.train.ensemble import Loss
from specjax.train.optimizer import GroupSchedule, make_optimizer

Tree = Any


@jax.jit
def scaled(factors: Tree, scale: jax.Array) -> Tree:
    """Shrink low-rank updates: lora_b of every layer times scale (S,), one number a seed."""

    def shrink(path: Any, leaf: jax.Array) -> jax.Array:
        by = jnp.reshape(scale, (-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
        scaled_leaf = leaf * by if path[-1].key == "lora_b" else leaf
        # By nothing is nothing, also where training diverged.
        return jnp.where((by == 0) & ~jnp.isfinite(scaled_leaf), 0, scaled_leaf)

    return jax.tree_util.tree_map_with_path(shrink, factors)


@functools.cache
def start(config: ModelConfig, group: str) -> Callable[[jax.Array, Tree], Tree]:
    """Compile the drawing of a group's factors: (keys (S,), base parameters) -> leaves (S, ...)."""
    tag = LORA_GROUPS.index(group)

    def one(key: jax.Array, params: Tree) -> Tree:
        return lora.init_adapters(jax.random.fold_in(key, tag), params, {group: config.loras[group]})

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


@functools.cache
def optimizer(group: str, schedule: GroupSchedule, steps: int) -> optax.GradientTransformation:
    """Make the optimizer of one group."""
    return make_optimizer({group: schedule}, steps=steps)


@functools.cache
def masked_modelling_loss(config: ModelConfig, batch: int) -> Loss:
    """LoRA1's objective: masked modelling of a batch of shared tokens (m, t, d)."""
    network = SpecCLIP(config, lora1=config.lora1)

    def loss(factors: Tree, frozen: Tree, tokens: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
        del own
        choose, mask = jax.random.split(key)
        drawn = tokens[jax.random.randint(choose, (batch,), 0, len(tokens))]
        hidden = losses.chunk_mask(mask, batch, config.specformer)
        predicted = network.apply(
            {"params": lora.combine(frozen, factors)},
            jnp.where(hidden[..., None], 0, drawn),
            method=lambda model, x: model.lamost.backbone.predict_tokens(x),
        )
        return losses.masked_modelling(predicted, drawn, hidden)

    return loss


@functools.cache
def contrastive_loss(config: ModelConfig, batch: int) -> Loss:
    """LoRA3's objective: "z_xp" (m, k) against projected "tokens" (m, t, d), shared or a seed's own."""
    network = SpecCLIP(config, lora3=config.lora3)

    def loss(factors: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        rows = jax.random.choice(key, len(shared["z_xp"]), (batch,), replace=False)
        tokens = own["tokens"] if "tokens" in own else shared["tokens"]
        z_lamost = network.apply(
            {"params": lora.combine(frozen, factors)},
            tokens[rows],
            method=lambda model, x: model.lamost.projection(x),
        )
        return losses.contrastive(shared["z_xp"][rows], z_lamost)

    return loss


@functools.cache
def head_loss(config: ModelConfig, head: str, group: str, column: int) -> Loss:
    """LoRA2's and LoRA4's objective: robust regression of a label on a seed's own features "x" (a, d)."""
    network = LabelHead(config.head, lora=config.loras[group])

    def loss(factors: Tree, frozen: Tree, stats: Tree, own: Tree, key: jax.Array) -> jax.Array:
        del key
        params = lora.combine(frozen, factors)[head]
        predicted = network.apply({"params": params, "batch_stats": stats}, own["x"])[:, column]
        return losses.pseudo_huber(predicted - own["y"], own["weight"])

    return loss


@functools.cache
def tower_program(config: ModelConfig, kind: str, groups: tuple[str, ...]) -> Callable[..., jax.Array]:
    """Compile the LAMOST tower over seeds: "tokens", their "mean", or the "projected" vector."""
    loras = {group: config.loras[group] for group in groups}
    network = SpecCLIP(config, **loras)

    def tower(model: SpecCLIP, tokens: jax.Array) -> jax.Array:
        embedded = model.lamost.backbone(tokens)
        if kind == "projected":
            return model.lamost.projection(embedded)
        return embedded.mean(axis=1) if kind == "mean" else embedded

    def one(frozen: Tree, factors: Tree, flux: jax.Array, valid: jax.Array) -> jax.Array:
        params = lora.combine(frozen, factors) if groups else frozen
        return network.apply({"params": params}, tokenise(flux, config.specformer, valid), method=tower)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None, None)))


@functools.cache
def head_program(config: ModelConfig, head: str, group: str | None) -> Callable[..., jax.Array]:
    """Compile the head over runs."""
    network = LabelHead(config.head, lora=None if group is None else config.loras[group])

    def one(frozen: Tree, factors: Tree, stats: Tree, features: jax.Array) -> jax.Array:
        params = (lora.combine(frozen, factors) if group else frozen)[head]
        return network.apply({"params": params, "batch_stats": stats}, features)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None, 0)))
