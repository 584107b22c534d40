"""Matrix products with a stated precision, and the low-rank products of LoRA.

A product of float32 arrays is computed in float32 on every device. JAX's default would round its operands to
TF32 on a GPU and to bfloat16 on a TPU. A product of arrays in half precision accumulates in float32.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

FULL = jax.lax.Precision.HIGHEST
"""The precision of float32 products; products in half precision are not affected by it."""

matmul = functools.partial(jnp.matmul, precision=FULL)
einsum = functools.partial(jnp.einsum, precision=FULL)


@jax.custom_vjp
def token_mean(tokens: jax.Array) -> jax.Array:
    """Return the mean (n, d) of tokens (n, t, d) over t.

    It is a product with constant weights, one per spectrum. For a reduction XLA would transpose the residual
    stream of all blocks on a GPU, so that the axis to reduce comes last.
    """
    *lead, count, _ = tokens.shape
    # Of two equal rows and behind a barrier: XLA makes a reduction of a product with one row, or with a
    # constant.
    weights = jax.lax.optimization_barrier(jnp.full((*lead, 2, count), 1 / count, tokens.dtype))
    return matmul(weights, tokens)[..., 0, :]


def _mean_forward(tokens: jax.Array) -> tuple[jax.Array, int]:
    return token_mean(tokens), tokens.shape[-2]


def _mean_backward(count: int, gradient: jax.Array) -> tuple[jax.Array]:
    *lead, width = gradient.shape
    return (jnp.broadcast_to(gradient[..., None, :] / count, (*lead, count, width)),)


token_mean.defvjp(_mean_forward, _mean_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def low_rank(
    x: jax.Array, downs: Sequence[jax.Array], ups: Sequence[Sequence[jax.Array]], scale: float
) -> list[list[jax.Array]]:
    """Return scale (x A) B for the factors of several layers that read the same x.

    One product with all factors A side by side reads x once.

    The derivative is defined by hand so that only arrays as wide as the ranks are scaled and transposed. With
    automatic differentiation XLA transposes the gradient of the output to obtain that of B, which on a CPU
    takes longer than the products themselves.

    Args:
        x: (..., in).
        downs: the factor A (in, rank) of each layer.
        ups: the factor B (rank, out) of each layer, cut into parts along `out`.
        scale: alpha/rank.

    Returns:
        The parts (..., out) of each layer.
    """
    return _forward(x, downs, ups, scale)[0]


def _forward(
    x: jax.Array, downs: Sequence[jax.Array], ups: Sequence[Sequence[jax.Array]], scale: float
) -> tuple[list[list[jax.Array]], tuple[jax.Array, ...]]:
    down = jnp.concatenate(downs, axis=-1)  # (in, ranks)
    thin = scale * matmul(x, down)
    each = _cut(thin, downs)
    outputs = [[matmul(one, up) for up in parts] for one, parts in zip(each, ups, strict=True)]
    return outputs, (x, downs, ups, thin)  # type: ignore[return-value]


def _backward(scale: float, saved: tuple, gradients: list[list[jax.Array]]) -> tuple:  # type: ignore[type-arg]
    x, downs, ups, thin = saved
    down = jnp.concatenate(downs, axis=-1)
    thin_gradients = [
        sum(matmul(gradient, up.T) for gradient, up in zip(*layer, strict=True))
        for layer in zip(gradients, ups, strict=True)
    ]
    thin_gradient = scale * jnp.concatenate(thin_gradients, axis=-1)  # (..., ranks)
    # (ranks, in): with x transposed instead, the product takes six times as long on a CPU. Without the
    # barrier XLA would merge the transposition into the product and transpose x.
    down_gradient = jax.lax.optimization_barrier(matmul(_rows(thin_gradient).T, _rows(x))).T
    up_gradients = [
        [matmul(_rows(one).T, _rows(gradient)) for gradient in parts]
        for one, parts in zip(_cut(thin, downs), gradients, strict=True)
    ]
    return matmul(thin_gradient, down.T), _cut(down_gradient, downs), up_gradients


low_rank.defvjp(_forward, _backward)


def _cut(joined: jax.Array, downs: Sequence[jax.Array]) -> list[jax.Array]:
    """Cut an array (..., ranks) into those of the layers."""
    ends = np.cumsum([down.shape[-1] for down in downs])
    return jnp.split(joined, ends[:-1], axis=-1)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
