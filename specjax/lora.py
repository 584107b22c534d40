"""Where the low-rank factors sit in the parameter tree, how to part the tree, and how to merge them into it.

Rules are regular expressions on "/"-joined paths, so one place says what every leaf of a whole system is:

| group    | leaves                                                                     |
|----------|----------------------------------------------------------------------------|
| lora1    | factors beside q_proj, kv_proj, out_proj in every block of lamost/backbone |
| lora2    | factors beside every Linear of the head mlp1                               |
| lora3    | factors beside out_proj and both mlp layers of lamost/projection           |
| lora4    | factors beside every Linear of the head mlp2                               |
| residual | the network that is added to a residual head, mlp1 or mlp2                 |
| head     | everything else in mlp1 and mlp2                                           |
| frozen   | everything else in the towers and decoders                                 |

Every group has finer parts (`labels_of`), which an optimizer may treat differently: lora1/a and lora1/b for
the two factors, mlp1 for the leaves of one head, lamost/backbone for a tower.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from specjax.config import LoRAConfig
from specjax.errors import ModelError

Tree = dict[str, Any]

FACTORS = ("lora_a", "lora_b")
HEAD_GROUPS = {"mlp1": "lora2", "mlp2": "lora4"}
"""The group of factors that adapts each label head."""

HEADS = tuple(HEAD_GROUPS)

# Which dense layers each group adapts, by the path of the layer.
_TARGETS = {
    "lora1": re.compile(r"lamost/backbone/blocks_\d+/attention/(q_proj|kv_proj|out_proj)"),
    "lora2": re.compile(r"mlp1/dense_\d+"),
    "lora3": re.compile(
        r"lamost/projection/((cross|shared|private)_attention/out_proj|((shared|private)_)?mlp/(en|de)coder)"
    ),
    "lora4": re.compile(r"mlp2/dense_\d+"),
}
_TOWERS = re.compile(r"(lamost|gaia_xp)/(backbone|projection)/.+|(lamost|gaia_xp)_(cross_)?decoder/.+")
_HEADS = re.compile(r"(mlp1|mlp2)/(dense|norm)_\d+/.+")
_RESIDUALS = re.compile(r"(mlp1|mlp2)/residual_\d+/.+")


def group_of(path: str) -> str:
    """Return the group of the leaf at a "/"-joined path: lora1 to lora4, residual, head or frozen.

    Raises:
        ModelError: no rule covers the path.
    """
    layer, _, name = path.rpartition("/")
    if name in FACTORS:
        group = target_group(layer)
        if group is None:
            raise ModelError(f"no LoRA group adapts the layer of parameter {path!r}")
        return group
    if _RESIDUALS.fullmatch(path):
        return "residual"
    if _HEADS.fullmatch(path):
        return "head"
    if _TOWERS.fullmatch(path):
        return "frozen"
    raise ModelError(f"no rule says whether parameter {path!r} is trained or frozen")


def labels_of(path: str) -> tuple[str, str]:
    """Return (finer part, group) of the leaf at a "/"-joined path.

    The parts are GROUP/a and GROUP/b of low-rank factors, residual/HEAD, and for all other leaves the module:
    mlp1, mlp2, lamost/backbone, lamost/projection, gaia_xp/backbone and so on.

    Raises:
        ModelError: no rule covers the path.
    """
    group, parts = group_of(path), path.split("/")
    if parts[-1] in FACTORS:
        return f"{group}/{parts[-1].removeprefix('lora_')}", group
    if group == "residual":
        return f"residual/{parts[0]}", group
    return (parts[0] if group == "head" or len(parts) < 3 else "/".join(parts[:2])), group


def target_group(layer: str) -> str | None:
    """Return the LoRA group that adapts the dense layer at a "/"-joined path, None if there is none."""
    return next((group for group, rule in _TARGETS.items() if rule.fullmatch(layer)), None)


def partition_labels(params: Mapping[str, Any], trained: Iterable[str] | None = None) -> Tree:
    """Label every leaf of a parameter tree, for `optax.multi_transform`.

    Args:
        params: the tree.
        trained: labels of `labels_of`, groups or finer parts; leaves outside them are labelled "frozen", and
            the finer part goes first. By default all leaves get the label of their group.

    Raises:
        ModelError: a leaf that no rule covers, named by its path.
    """
    if trained is None:
        return _nest({path: group_of(path) for path in _leaves(params)})
    wanted = set(trained)
    return _nest(
        {
            path: next((label for label in labels_of(path) if label in wanted), "frozen")
            for path in _leaves(params)
        }
    )


def split(params: Mapping[str, Any], labels: Iterable[str]) -> tuple[Tree, Tree]:
    """Part a tree into (rest, chosen): the leaves without and with one of the labels (`labels_of`).

    `combine` is the inverse.
    """
    wanted = set(labels)
    rest: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for path, leaf in _leaves(params).items():
        (rest if wanted.isdisjoint(labels_of(path)) else chosen)[path] = leaf
    return _nest(rest), _nest(chosen)


def combine(first: Mapping[str, Any], second: Mapping[str, Any]) -> Tree:
    """Join two trees without common leaves into one.

    Raises:
        ModelError: a leaf is in both.
    """
    leaves, others = _leaves(first), _leaves(second)
    both = sorted(leaves.keys() & others.keys())
    if both:
        raise ModelError(f"parameter {both[0]!r} is in both trees")
    return _nest(leaves | others)


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Return the base tree with the leaves of `changes` added, or in place of its own."""
    return _nest(_leaves(base) | _leaves(changes))


@jax.jit
def scale_updates(adapters: Tree, scale: jax.Array, base: Tree | None = None) -> Tree:
    """Multiply the updates of S seeds, leaves (S, ...), by one number per seed, scale (S,).

    Of low-rank factors only lora_b is multiplied, so that the product B A is; of a residual head the last
    layer. All other leaves replace those of `base`, and move along the line between the two. A scale of 0
    gives the model as it is even if training diverged.

    Args:
        adapters: leaves (S, ...).
        scale: (S,).
        base: the model's parameters, needed for leaves that replace its own.
    """
    chex.assert_tree_shape_prefix(adapters, scale.shape)
    known = _leaves(base or {})

    def scaled(path: str, leaf: jax.Array) -> jax.Array:
        by = jnp.reshape(scale, (-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
        if path in known:
            result = known[path] + by * (leaf - known[path])
        else:
            result = leaf * by if re.search(r"/lora_b$|/residual_1/", path) else leaf
        return jnp.where((by == 0) & ~jnp.isfinite(result), known.get(path, 0), result)

    return _nest({path: scaled(path, leaf) for path, leaf in _leaves(adapters).items()})


def fuse(adapters: Mapping[str, Any]) -> Tree:
    """Average the adapters of S seeds, leaves (S, ...), into one, leaves (1, ...).

    The products A B are averaged, never A and B separately, whose bases differ between seeds. The average has
    a rank of up to S times that of one seed; its factors are the truncated singular value decomposition at
    that rank, or at the full rank of the layer if that is less, and so exact.

    Raises:
        ModelError: other leaves than low-rank factors, whose average would not be that of the networks.
    """
    leaves = _leaves(adapters)
    others = sorted(path for path in leaves if path.rpartition("/")[2] not in FACTORS)
    if others:
        raise ModelError(f"only low-rank factors can be fused, not {others[0]!r}")
    fused: dict[str, Any] = {}
    for path, leaf in leaves.items():
        layer, _, name = path.rpartition("/")
        if name == "lora_a":
            a, b = (np.asarray(leaves[f"{layer}/{factor}"], np.float64) for factor in FACTORS)
            # (S, ..., in, r) side by side: (..., in, S r); B below each other: (..., S r, out)
            a = np.concatenate(list(a), axis=-1)
            b = np.concatenate(list(b), axis=-2) / len(leaf)
            (q_a, r_a), (q_b, r_b) = np.linalg.qr(a), np.linalg.qr(b.swapaxes(-1, -2))
            u, s, v = np.linalg.svd(r_a @ r_b.swapaxes(-1, -2), full_matrices=False)
            root = np.sqrt(s)
            fused[f"{layer}/lora_a"] = ((q_a @ u) * root[..., None, :])[None].astype(np.float32)
            fused[f"{layer}/lora_b"] = (root[..., None] * (v @ q_b.swapaxes(-1, -2)))[None].astype(np.float32)
    return _nest(fused)


def init_adapters(
    key: jax.Array,
    params: Mapping[str, Any],
    configs: Mapping[str, LoRAConfig],
    ranks: Sequence[tuple[str, int]] = (),
) -> Tree:
    """Make fresh factors for the groups in `configs`, from the shapes of the base kernels.

    A kernel (..., in, out) gets lora_a (..., in, rank), uniform within 1/sqrt(in), and lora_b (..., rank,
    out), zero, so the adapted model starts as the base model. A leading axis of head members is kept. Returns
    the small tree, to be joined to the base with `combine`; the factors of one layer depend on `key` and its
    path order.

    Args:
        key: random key.
        params: the base model, or the part of it that the groups are in.
        configs: rank and alpha by group.
        ranks: (regular expression, rank): the first that is found in the path of a layer, such as
            "lamost/backbone/blocks_1/attention/out_proj", sets its rank, and 0 leaves it alone. The factor
            alpha/rank remains that of the group.

    Raises:
        ModelError: a group that has nothing to adapt in this tree.
    """
    leaves: dict[str, jax.Array] = {}
    rank_of = layer_ranks(params, configs, ranks)
    for layer, kernel, _ in _targets(params, configs):
        rank = rank_of[layer]
        if not rank:
            continue
        *lead, inputs, outputs = kernel.shape
        layer_key = jax.random.fold_in(key, len(leaves))
        leaves[f"{layer}/lora_a"] = init_lora_a(layer_key, (*lead, inputs, rank), kernel.dtype)
        leaves[f"{layer}/lora_b"] = jnp.zeros((*lead, rank, outputs), kernel.dtype)
    return _nest(leaves)


def adaptable_layers(params: Mapping[str, Any]) -> list[str]:
    """Return the paths of the dense layers of a model that any LoRA group adapts."""
    return [layer for layer, _, _ in _targets(params, _TARGETS)]


def adapted_layers(adapters: Mapping[str, Any]) -> dict[str, int]:
    """Return the rank of each dense layer that a tree has low-rank factors for, by path, in its order."""
    ending = f"/{FACTORS[0]}"
    found = {path: leaf for path, leaf in _leaves(adapters).items() if path.endswith(ending)}
    return {path.removesuffix(ending): leaf.shape[-1] for path, leaf in found.items()}


def layer_ranks(
    params: Mapping[str, Any], configs: Mapping[str, LoRAConfig], ranks: Sequence[tuple[str, int]] = ()
) -> dict[str, int]:
    """Return the rank of each layer of the groups in `configs`, 0 for those that `ranks` leaves alone.

    Arguments and errors as in `init_adapters`.
    """
    group_of_layer = {layer: group for layer, _, group in _targets(params, configs)}
    result = {
        layer: next((rank for rule, rank in ranks if re.search(rule, layer)), configs[group].rank)
        for layer, group in group_of_layer.items()
    }
    adapted = {group for layer, group in group_of_layer.items() if result[layer]}
    missing = sorted(set(configs) - adapted)
    if missing:
        ruled_out = sorted(set(missing) & set(group_of_layer.values()))
        why = f": all layers of {', '.join(ruled_out)} have a rank of 0 (--ranks)" if ruled_out else ""
        raise ModelError(f"nothing in this model for {', '.join(missing)} to adapt{why}")
    return result


def init_lora_a(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw a factor A (..., in, rank) uniformly within 1/sqrt(in), as in the code of Hu et al. (2021)."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def merge(params: Mapping[str, Any], adapters: Mapping[str, Any], configs: Mapping[str, LoRAConfig]) -> Tree:
    """Add (alpha/rank) A B to the kernels: a tree of the base's shape that gives the adapted output.

    `params` is the base tree and `adapters` the small tree of factors, of any rank; `configs` has the groups'
    alpha and rank, of which the quotient counts.

    Raises:
        ModelError: factors without a kernel, one without the other, or of shapes that do not fit.
    """
    return _add_products(params, adapters, configs, 1.0)


def unmerge(
    merged: Mapping[str, Any], adapters: Mapping[str, Any], configs: Mapping[str, LoRAConfig]
) -> Tree:
    """Take the low-rank products off again: the base tree, to float32 rounding."""
    return _add_products(merged, adapters, configs, -1.0)


def describe(adapters: Mapping[str, Any], configs: Mapping[str, LoRAConfig]) -> dict[str, dict[str, Any]]:
    """Return what the factors of an adapter mean, to be stored with it, by LoRA group.

    "scale" is the factor on the products A B, the alpha/rank of the group in `configs`. "ranks" has the rank
    of each layer, which differs from that of the group where ranks are set by layer or seeds are fused.
    """
    groups: dict[str, dict[str, Any]] = {}
    for path, leaf in sorted(_leaves(adapters).items()):
        layer, _, name = path.rpartition("/")
        if name == FACTORS[0]:
            group = group_of(path)
            known = groups.setdefault(group, {"scale": configs[group].scale, "ranks": {}})
            known["ranks"][layer] = leaf.shape[-1]
    return groups


def count_parameters(tree: Any) -> int:
    """Count the numbers in a tree of arrays (or of shapes from `jax.eval_shape`)."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def _nest(leaves: dict[str, Any]) -> Tree:
    return dict(unflatten_dict(leaves, sep="/"))


def _targets(params: Mapping[str, Any], groups: Iterable[str]) -> Iterator[tuple[str, Any, str]]:
    wanted = set(groups)
    # Sorted, so that the random numbers do not depend on the order in which a tree was put together.
    for path, leaf in sorted(_leaves(params).items(), key=lambda item: item[0]):
        layer, _, name = path.rpartition("/")
        group = target_group(layer)
        if name == "kernel" and group in wanted:
            yield layer, leaf, group


def _add_products(
    params: Mapping[str, Any], adapters: Mapping[str, Any], configs: Mapping[str, LoRAConfig], sign: float
) -> Tree:
    leaves = _leaves(params)
    factors = _leaves(adapters)
    for layer in sorted({path.rpartition("/")[0] for path in factors}):
        path = f"{layer}/kernel"
        try:
            a, b = (factors[f"{layer}/{name}"] for name in FACTORS)
            config = configs[group_of(f"{layer}/lora_a")]
            kernel = leaves[path]
        except KeyError as error:
            raise ModelError(f"the adapter does not fit the model: {error.args[0]!r} is missing") from error
        shape = (*a.shape[:-1], b.shape[-1])
        if shape != kernel.shape or a.shape[-1] != b.shape[-2]:
            raise ModelError(
                f"the adapter of {layer!r} has shapes {a.shape} and {b.shape}, which do not fit a kernel"
                f" {kernel.shape}"
            )
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        leaves[path] = kernel + sign * config.scale * product
    return _nest(leaves)
