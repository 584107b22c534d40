"""Gradient accumulation: the gradient of a batch that does not fit into memory, summed over its parts.

The gradient of a loss that is a sum over parts is the sum of their gradients, so that nothing is computed
twice and the activations of only one part are held at a time. Inside a `vmap` over seeds each part has rows
of all seeds.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from specjax.typing import Tree

# (trained tree, constant tree, one part of the batch) -> scalar
PartLoss = Callable[[Tree, Tree, Tree], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(loss: PartLoss, trained: Tree, constant: Tree, parts: Tree) -> jax.Array:
    """Return the sum of `loss` over the leading axis of the leaves of `parts`.

    It is differentiable with respect to `trained` only; the gradients of `constant` and `parts` are zero.
    """

    def add(total: jax.Array, part: Tree) -> tuple[jax.Array, None]:
        return total + loss(trained, constant, part), None

    return jax.lax.scan(add, jnp.zeros(()), parts)[0]


def _forward(loss: PartLoss, trained: Tree, constant: Tree, parts: Tree) -> tuple[jax.Array, Tree]:
    def add(total: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(trained, constant, part)), None

    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    return jax.lax.scan(add, nothing, parts)[0]


def _backward(loss: PartLoss, gradient: Tree, cotangent: jax.Array) -> tuple[Tree, None, None]:
    return jax.tree.map(lambda leaf: cotangent * leaf, gradient), None, None


summed.defvjp(_forward, _backward)
