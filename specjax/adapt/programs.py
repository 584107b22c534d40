"""The compiled programs and objectives of the adaptation, made once for their arguments.

`ensemble.fit` compiles once for each objective and optimizer, by identity: hence the caches.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from specjax import lora
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.foundation.inference import Networks, Summary, computing
from specjax.models.label_head import LabelHead
from specjax.models.projection import LamostProjection
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import tokenise
from specjax.train import losses
from specjax.train.loop import Loss
from specjax.train.micro_batches import summed
from specjax.train.optimizer import GroupSchedule, make_optimizer
from specjax.typing import Tree


@jax.jit
def scaled(factors: Tree, scale: jax.Array) -> Tree:
    """Shrink low-rank updates: lora_b of every layer times scale (S,), one number a seed."""

    def shrink(path: Any, leaf: jax.Array) -> jax.Array:
        by = jnp.reshape(scale, (-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
        scaled_leaf = leaf * by if path[-1].key == "lora_b" else leaf
        # By nothing is nothing, also where training diverged.
        return jnp.where((by == 0) & ~jnp.isfinite(scaled_leaf), 0, scaled_leaf)

    return jax.tree_util.tree_map_with_path(shrink, factors)


@functools.partial(jax.jit, static_argnums=0)
def tokens(config: ModelConfig, flux: jax.Array, valid: jax.Array) -> jax.Array:
    """Cut prepared LAMOST flux (n, pixels) into tokens (n, t, token_dim), as `models.tokenise`."""
    return tokenise(flux, config.specformer, valid)


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
def masked_modelling_loss(
    config: ModelConfig, batch: int, dtype: str = "float32", rows: int | None = None
) -> Loss:
    """LoRA1's objective: masked modelling of a batch of shared tokens (m, t, d), `rows` at a time."""
    rows = rows or batch
    network = SpecFormer(config.specformer, lora=config.lora1, dtype=computing(dtype))

    def of_part(factors: Tree, frozen: Tree, part: Tree) -> jax.Array:
        drawn, hidden, share = part
        params = lora.combine(frozen, factors)["lamost"]["backbone"]
        masked = jnp.where(hidden[..., None], 0, drawn)
        predicted = network.apply({"params": params}, masked, method="predict_tokens")
        return share * losses.masked_modelling(predicted, drawn, hidden)

    def loss(factors: Tree, frozen: Tree, tokens: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
        del own
        choose, mask = jax.random.split(key)
        drawn = tokens[jax.random.randint(choose, (batch,), 0, len(tokens))]
        hidden = losses.chunk_mask(mask, batch, config.specformer)
        if rows == batch:
            return of_part(factors, frozen, (drawn, hidden, 1.0))
        drawn, hidden = (x.reshape(-1, rows, *x.shape[1:]) for x in (drawn, hidden))
        count = hidden.sum(axis=(1, 2))  # the loss is a mean over what is hidden
        return summed(of_part, factors, frozen, (drawn, hidden, count / jnp.maximum(count.sum(), 1)))

    return loss


@functools.cache
def contrastive_loss(config: ModelConfig, batch: int, dtype: str = "float32") -> Loss:
    """LoRA3's objective: "z_xp" (m, k) against the projection of "mixed" (m, dim), shared or a seed's own."""
    project = _projection(config, dtype, adapted=True)

    def loss(factors: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        rows = jax.random.choice(key, len(shared["z_xp"]), (batch,), replace=False)
        mixed = own["mixed"] if "mixed" in own else shared["mixed"]
        z_lamost = project(lora.combine(frozen, factors), mixed[rows])
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
        return losses.pseudo_huber_loss(predicted - own["y"], own["weight"])

    return loss


@functools.cache
def summary_program(config: ModelConfig, adapted: bool, dtype: str = "float32") -> Callable[..., Summary]:
    """Compile the LAMOST backbone over seeds, with LoRA1 or as it is: what `Summary` holds, (S, n, ...)."""
    lora1 = config.lora1 if adapted else None

    def one(frozen: Tree, factors: Tree, flux: jax.Array, valid: jax.Array) -> Summary:
        params = lora.combine(frozen, factors) if adapted else frozen
        return Networks(config, {"params": params}, computing(dtype), lora1).lamost_summary(flux, valid)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None, None)))


@functools.cache
def projection_program(
    config: ModelConfig, adapted: bool, dtype: str = "float32"
) -> Callable[..., jax.Array]:
    """Compile the LAMOST projection over seeds, with LoRA3 or as it is: mixed (S, n, dim) to z."""
    project = _projection(config, dtype, adapted)

    def one(frozen: Tree, factors: Tree, mixed: jax.Array) -> jax.Array:
        return project(lora.combine(frozen, factors) if adapted else frozen, mixed)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))


def _projection(config: ModelConfig, dtype: str, adapted: bool) -> Callable[[Tree, jax.Array], jax.Array]:
    """Make (parameters, mixed) -> z: what of the LAMOST projection LoRA3 reaches."""
    module = LamostProjection(config.projection, config.lora3 if adapted else None, computing(dtype))

    def project(params: Tree, mixed: jax.Array) -> jax.Array:
        variables = {"params": params["lamost"]["projection"]}
        return cast(jax.Array, module.apply(variables, mixed, method="project"))

    return project


@functools.cache
def head_program(config: ModelConfig, head: str, group: str | None) -> Callable[..., jax.Array]:
    """Compile the head over runs."""
    network = LabelHead(config.head, lora=None if group is None else config.loras[group])

    def one(frozen: Tree, factors: Tree, stats: Tree, features: jax.Array) -> jax.Array:
        params = (lora.combine(frozen, factors) if group else frozen)[head]
        return network.apply({"params": params, "batch_stats": stats}, features)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None, 0)))
