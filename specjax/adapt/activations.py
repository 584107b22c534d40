"""The inputs of the adapted layers on the training stars, and the directions in which they vary most."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt.tower import Entry, tower_features
from specjax.config import ModelConfig
from specjax.models.apply import apply
from specjax.models.label_head import LabelHead
from specjax.models.layers import LoRADense
from specjax.typing import FloatArray, IntArray, Tree

_TOWERS = ("lamost/backbone", "lamost/projection")


def leading_directions(
    config: ModelConfig,
    dtype: str,
    frozen: Tree,
    ranks: Mapping[str, int],
    inputs: Tree,
    entry: Entry,
    rows: IntArray,
    *,
    own: bool = False,
) -> dict[str, FloatArray]:
    """Return the right singular vectors of the inputs of layers, by decreasing singular value.

    The inputs of a layer are those of all tokens of all training stars of a seed, not centred, in the model
    as it is. For a head of several members, each has its own.

    Args:
        config: of the model.
        dtype: type of the tower's matrix products.
        frozen: "params" from the entry on, "batch_stats" and "stats" of heads, as `stage.Trainer` makes them.
        ranks: number of vectors by path of a dense layer at or beyond the entry, at most all of them.
        inputs: of n spectra at the entry, leaves (n, ...), or (S, n, ...) if `own`.
        entry: where the tower is entered.
        rows: (S, a) training stars of each seed.
        own: see `inputs`.

    Returns:
        {layer: (S, in, r)}, or (S, members, in, r) in a head of several members; vectors are columns.
    """
    program = _program(config, dtype, entry, tuple(ranks))
    found: dict[str, list[FloatArray]] = {layer: [] for layer in ranks}
    for seed, stars in enumerate(rows):
        mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], inputs) if own else inputs
        grams = program(frozen, mine, stars)
        for layer, rank in ranks.items():
            vectors = np.linalg.eigh(np.asarray(grams[layer], np.float64))[1]  # by increasing eigenvalue
            found[layer].append(vectors[..., ::-1][..., :rank])
    return {layer: np.stack(vectors) for layer, vectors in found.items()}


@functools.cache
def _program(
    config: ModelConfig, dtype: str, entry: Entry, layers: tuple[str, ...]
) -> Callable[[Tree, Tree, IntArray], dict[str, jax.Array]]:
    """Compile (frozen, inputs, rows (a,)) -> Gram matrices (in, in) of the inputs of each layer."""

    def grams(frozen: Tree, inputs: Tree, rows: jax.Array) -> dict[str, jax.Array]:
        params, heads = frozen["params"], tuple(frozen["batch_stats"])
        seen: dict[str, jax.Array] = {}
        with _watching(seen, _TOWERS):
            mine = jax.tree.map(lambda leaf: leaf[rows], inputs)
            features = tower_features(config, dtype, params, mine, entry, heads)
        for head in heads:
            stats = frozen["stats"][head]
            x = (features[head] - stats["feature_mean"]) / stats["feature_std"]
            variables = {"params": params[head], "batch_stats": frozen["batch_stats"][head]}
            seen |= _of_head(config, head, variables, x)
        return {layer: seen[layer] for layer in layers}

    return jax.jit(grams)


def _of_head(config: ModelConfig, head: str, variables: Tree, x: jax.Array) -> dict[str, jax.Array]:
    """Return the Gram matrices of the layers of a head, for each of its members if there are several."""
    members = config.head.members
    alone = LabelHead(dataclasses.replace(config.head, members=1))
    found = []
    for member in range(members):
        mine = jax.tree.map(lambda leaf, k=member: leaf[k], variables) if members > 1 else variables
        seen: dict[str, jax.Array] = {}
        with _watching(seen, (head,)):
            apply(alone, mine, x)
        found.append(seen)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found) if members > 1 else found[0]


@contextmanager
def _watching(seen: dict[str, jax.Array], roots: tuple[str, ...]) -> Iterator[None]:
    """Put the Gram matrices of the inputs of all dense layers that LoRA may adapt into `seen`, by path.

    A module that is applied knows its own path only from itself on; `roots` are those it may lie below.
    """

    def interceptor(
        run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if isinstance(context.module, LoRADense) and context.method_name == "leaves":
            below = "/".join(context.module.path)
            for layer in (f"{root}/{below}" for root in roots):
                if lora.target_group(layer):
                    x = args[0].reshape(-1, args[0].shape[-1]).astype(jnp.float32)
                    seen[layer] = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
        return run(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        yield
