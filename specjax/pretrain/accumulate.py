"""Gradient accumulation: the gradient of a batch as the mean over parts of it, which need less memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from specjax.typing import Tree

Gradient = Callable[[Any, Tree, Tree, jax.Array], tuple[tuple[jax.Array, Any], Any]]
"""(params, batch_stats, data, key) -> ((loss, (batch_stats, metrics)), gradient)"""


def accumulated(loss: Callable[..., Any], parts: int) -> Gradient:
    """Return the value and gradient of a `loop.StageLoss` on data["batch"], as the mean over equal parts.

    Batch statistics are updated by one part after the other. A loss that relates the rows of a batch to each
    other, such as the contrastive one, is another loss on parts of it.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return gradient

    def mean(params: Any, stats: Tree, data: Tree, key: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
        def add(carry: tuple[Any, Tree], x: tuple[Tree, jax.Array]) -> tuple[tuple[Any, Tree], Any]:
            total, stats = carry
            batch, index = x
            given = {**data, "batch": batch}
            (value, (stats, metrics)), grads = gradient(params, stats, given, jax.random.fold_in(key, index))
            return (jax.tree.map(jnp.add, total, grads), stats), (value, metrics)

        nothing = jax.tree.map(jnp.zeros_like, params)
        batches = jax.tree.map(lambda leaf: split_rows(leaf, parts), data["batch"])
        (total, stats), (values, metrics) = jax.lax.scan(add, (nothing, stats), (batches, jnp.arange(parts)))
        grads = jax.tree.map(lambda leaf: leaf / parts, total)
        return (values.mean(), (stats, jax.tree.map(jnp.mean, metrics))), grads

    return mean


def split_rows(leaf: jax.Array, parts: int) -> jax.Array:
    """Deal the rows of a leaf (n, ...) to (parts, n / parts, ...); devices keep the rows that they have."""
    return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)


def join_rows(leaf: jax.Array) -> jax.Array:
    """Undo `split_rows`."""
    return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])
