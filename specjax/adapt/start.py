"""Where training starts: low-rank factors, the model's own leaves, or a new head.

Factors have one of three starts (`Start`):

- random: A random and B zero, as in Hu et al. (2021).
- pissa: the leading singular vectors of the kernel (PiSSA, arXiv 2404.02948). The rest of the kernel stays
  frozen, so that the model is unchanged at first. What has been learned is the trained product less the first
  one, which `as_updates` writes as ordinary factors of twice the rank.
- eva: A spans the leading right singular vectors of the layer's inputs on the training stars, and B is zero
  (EVA, arXiv 2410.07170). All layers keep their rank; the paper also moves ranks between layers.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from specjax import lora
from specjax.adapt.configuration import Configuration
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.models.label_head import LabelHead, init_residual
from specjax.models.layers import EPSILON
from specjax.typing import AnyArray, FloatArray, Tree

Start = Literal["random", "pissa", "eva"]
"""Where low-rank factors start."""

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


def principal_factors(start: Tree, params: Tree, config: ModelConfig) -> Tree:
    """Return the factors of PiSSA in place of random ones: scale A B is the leading part of each kernel.

    Where the rank exceeds that of the kernel, what is beyond stays random in A and zero in B.

    Args:
        start: random factors of S seeds, leaves (S, ..., in, rank) and (S, ..., rank, out); other leaves are
            kept.
        params: parameters of the model.
        config: its configuration, with the scale of each group.
    """
    leaves, kernels = flatten_dict(start, sep="/"), flatten_dict(params, sep="/")
    for layer in lora.adapted_layers(start):
        scale = config.loras[lora.group_of(f"{layer}/lora_a")].scale
        a, b = (np.array(leaves[f"{layer}/{name}"]) for name in lora.FACTORS)
        u, s, v = np.linalg.svd(np.asarray(kernels[f"{layer}/kernel"], np.float64), full_matrices=False)
        rank = min(a.shape[-1], s.shape[-1])
        root = np.sqrt(s[..., :rank] / scale)
        a[..., :rank] = u[..., :rank] * root[..., None, :]
        b[..., :rank, :] = root[..., None] * v[..., :rank, :]
        leaves |= {f"{layer}/lora_a": a, f"{layer}/lora_b": b}
    return dict(unflatten_dict(leaves, sep="/"))


def as_updates(leaves: Tree, start: Tree) -> Tree:
    """Write factors that began as `principal_factors` as ordinary ones, of twice the rank.

    A B - A0 B0 is the product of A and A0 side by side with B and -B0 below each other, and so what has been
    added to the model.

    Args:
        leaves: trained leaves (S, runs, snapshots, ...).
        start: the leaves (S, ...) that they started from.
    """
    trained, first = flatten_dict(leaves, sep="/"), flatten_dict(start, sep="/")
    for layer in lora.adapted_layers(leaves):
        for name, axis, sign in (("lora_a", -1, 1), ("lora_b", -2, -1)):
            path = f"{layer}/{name}"
            now, then = trained[path], sign * np.asarray(first[path])[:, None, None]
            trained[path] = np.concatenate([now, np.broadcast_to(then, now.shape)], axis=axis)
    return dict(unflatten_dict(trained, sep="/"))


def spanning_factors(start: Tree, directions: Mapping[str, FloatArray]) -> Tree:
    """Return the factors of EVA in place of random ones.

    Args:
        start: random factors of S seeds, of which B is zero; other leaves are kept.
        directions: leading directions (S, ..., in, k) of the inputs of each layer, orthonormal, the first one
            first; if the rank exceeds k, the rest of A stays random.
    """
    leaves: dict[str, AnyArray] = dict(flatten_dict(start, sep="/"))
    for layer in lora.adapted_layers(start):
        a = np.array(leaves[f"{layer}/lora_a"])
        rank = min(a.shape[-1], directions[layer].shape[-1])
        a[..., :rank] = directions[layer][..., :rank]
        leaves[f"{layer}/lora_a"] = a
    return dict(unflatten_dict(leaves, sep="/"))
