"""The objectives of the adaptation, their optimizers and initial factors, each made once for its arguments.

`train.loop.fit` compiles a program per objective and optimizer object; hence the caches.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from specjax import lora
from specjax.adapt.forward import head_module, projection_module
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.foundation.networks import module_dtype
from specjax.models.apply import apply
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import tokenise
from specjax.train import losses
from specjax.train.loop import Loss
from specjax.train.micro_batches import summed
from specjax.train.optimizer import GroupSchedule, make_optimizer
from specjax.typing import Tree


@functools.partial(jax.jit, static_argnums=0)
def tokens(config: ModelConfig, flux: jax.Array, valid: jax.Array) -> jax.Array:
    """Cut LAMOST flux (n, pixels) into tokens (n, t, token_dim); see `tokenise`."""
    return tokenise(flux, config.specformer, valid)


@functools.cache
def initial_factors(config: ModelConfig, group: str) -> Callable[[jax.Array, Tree], Tree]:
    """Compile (keys (S,), base parameters) -> initial factors of a group, leaves (S, ...)."""
    tag = LORA_GROUPS.index(group)

    def one_seed(key: jax.Array, params: Tree) -> Tree:
        return lora.init_adapters(jax.random.fold_in(key, tag), params, {group: config.loras[group]})

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None)))


@functools.cache
def optimizer(group: str, schedule: GroupSchedule, steps: int) -> optax.GradientTransformation:
    """Make the optimizer of one group."""
    return make_optimizer({group: schedule}, steps=steps)


@functools.cache
def masked_modelling_loss(
    config: ModelConfig, batch: int, dtype: str = "float32", rows: int | None = None
) -> Loss:
    """Return LoRA1's objective: masked modelling of a batch of shared tokens (m, t, d), `rows` at a time."""
    rows = rows or batch
    network = SpecFormer(config.specformer, lora=config.lora1, dtype=module_dtype(dtype))

    def part_loss(factors: Tree, frozen: Tree, part: Tree) -> jax.Array:
        drawn, hidden, share = part
        params = lora.combine(frozen, factors)["lamost"]["backbone"]
        masked = jnp.where(hidden[..., None], 0, drawn)
        predicted = apply(network, {"params": params}, masked, method="predict_tokens")
        return jnp.asarray(share * losses.masked_modelling(predicted, drawn, hidden))

    def loss(factors: Tree, frozen: Tree, tokens: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
        del own
        choose, mask = jax.random.split(key)
        drawn = tokens[jax.random.randint(choose, (batch,), 0, len(tokens))]
        hidden = losses.chunk_mask(mask, batch, config.specformer)
        if rows == batch:
            return part_loss(factors, frozen, (drawn, hidden, 1.0))
        drawn, hidden = (x.reshape(-1, rows, *x.shape[1:]) for x in (drawn, hidden))
        count = hidden.sum(axis=(1, 2))  # the loss is a mean over the hidden tokens
        return summed(part_loss, factors, frozen, (drawn, hidden, count / jnp.maximum(count.sum(), 1)))

    return loss


@functools.cache
def contrastive_loss(config: ModelConfig, batch: int, dtype: str = "float32") -> Loss:
    """Return LoRA3's objective: contrast "z_xp" (m, k) with the projection of "mixed" (m, dim).

    "mixed" is shared, or each seed's own.
    """
    module = projection_module(config, ("lora3",), dtype)

    def loss(factors: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        rows = jax.random.choice(key, len(shared["z_xp"]), (batch,), replace=False)
        mixed = own["mixed"] if "mixed" in own else shared["mixed"]
        params = lora.combine(frozen, factors)["lamost"]["projection"]
        z_lamost = apply(module, {"params": params}, mixed[rows], method="project")
        return losses.contrastive(shared["z_xp"][rows], z_lamost)

    return loss


@functools.cache
def head_loss(config: ModelConfig, head: str, group: str, column: int) -> Loss:
    """Return LoRA2's and LoRA4's objective: robust regression of a label on features "x" (a, d)."""
    network = head_module(config, head, (group,))

    def loss(factors: Tree, frozen: Tree, stats: Tree, own: Tree, key: jax.Array) -> jax.Array:
        del key
        params = lora.combine(frozen, factors)[head]
        predicted = apply(network, {"params": params, "batch_stats": stats}, own["x"])[:, column]
        return losses.pseudo_huber_loss(predicted - own["y"], own["weight"])

    return loss
