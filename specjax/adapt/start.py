"""Where training starts: fresh low-rank factors, the model's own leaves, or a new head."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from specjax import lora
from specjax.adapt.configuration import Configuration
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.models.label_head import LabelHead, init_residual
from specjax.models.layers import EPSILON
from specjax.typing import Tree

Ranks = tuple[tuple[str, int], ...]
"""(regular expression, rank) by layer, see `lora.init_adapters`."""


@functools.cache
def initial_leaves(
    config: ModelConfig, configuration: Configuration, ranks: Ranks = ()
) -> Callable[[jax.Array, Tree], Tree]:
    """Compile (keys (S,), the model's variables) -> the leaves that a configuration trains, (S, ...).

    A head from scratch normalises nothing at first: the running statistics of its BatchNorm layers are those
    of the trained head, and scale and offset start as their inverse.
    """

    def one_seed(key: jax.Array, variables: Tree) -> Tree:
        params = variables["params"]
        tree: Tree = {}
        for group in configuration.groups:
            if group in LORA_GROUPS:
                own = jax.random.fold_in(key, LORA_GROUPS.index(group))
                leaves = lora.init_adapters(own, params, {group: config.loras[group]}, ranks)
            elif group.startswith("residual/"):
                head = group.removeprefix("residual/")
                width = params[head]["dense_0"]["kernel"].shape[-2]
                own = jax.random.fold_in(key, len(LORA_GROUPS))
                leaves = {head: init_residual(own, config.head, width)}
            else:
                leaves = lora.split(params, [group])[1]
                if configuration.from_scratch:
                    own = jax.random.fold_in(key, len(LORA_GROUPS) + 1)
                    leaves = {group: _new_head(own, config, leaves[group], variables["batch_stats"][group])}
            tree = lora.combine(tree, leaves)
        return tree

    return jax.jit(jax.vmap(one_seed, in_axes=(0, None)))


def _new_head(key: jax.Array, config: ModelConfig, head: Tree, batch_stats: Tree) -> Tree:
    width = head["dense_0"]["kernel"].shape[-2]
    made = dict(LabelHead(config.head).init(key, jnp.zeros((1, width)))["params"])
    for name, stats in batch_stats.items():
        made[name] = {"scale": jnp.sqrt(stats["var"] + EPSILON), "bias": stats["mean"]}
    return made
