"""Attention in half precision against float64, with logits that make a wrong scale visible."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import devices
from specjax.models.specformer import attend

SCALE = 1 / 128
ROUNDING = 0.03  # bfloat16, relative to the spread of the result


def draw(seeds=3):
    """q, k, v and a gradient (s, n, t, h, d); logits have a spread of 3, so that a few tokens get it all."""
    q, k, v, gradient = np.random.default_rng(0).normal(size=(4, seeds, 2, 146, 6, 128))
    size = (3 / SCALE / 128**0.5) ** 0.5
    return size * q, size * k, v, gradient


def exact(q, k, v, gradient, scale):
    """The result and the three gradients, in float64."""
    logits = scale * np.einsum("snqhd,snkhd->snhqk", q, k)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("snhqk,snkhd->snqhd", weights, v)
    back = np.einsum("snqhd,snkhd->snhqk", gradient, v)
    back = scale * weights * (back - (weights * back).sum(-1, keepdims=True))
    return (
        out,
        np.einsum("snhqk,snkhd->snqhd", back, k),
        np.einsum("snhqk,snqhd->snkhd", back, q),
        np.einsum("snhqk,snqhd->snkhd", weights, gradient),
    )


def ours(q, k, v, gradient, dtype):
    q, k, v, gradient = (jnp.asarray(part, dtype) for part in (q, k, v, gradient))

    def one(q, k, v, gradient):
        out, pull = jax.vjp(lambda *given: attend(*given, SCALE), q, k, v)
        return out, *pull(gradient)

    return [np.asarray(part, np.float64) for part in jax.jit(jax.vmap(one))(q, k, v, gradient)]


def errors(found, expected):
    """Errors (4,) of the result and of the gradients, relative to their spread."""
    return np.array([(a - b).std() / b.std() for a, b in zip(found, expected, strict=True)])


def rounded(given):
    return [np.asarray(jnp.asarray(part, jnp.bfloat16), np.float64) for part in given]


def check(dtype, tolerance):
    given = rounded(draw())
    found = ours(*given, dtype)
    chex.assert_trees_all_equal_shapes(found, list(exact(*given, SCALE)))
    assert (errors(found, exact(*given, SCALE)) < tolerance).all()
    for wrong in (0.5, 1.5):
        assert (errors(found, exact(*given, wrong * SCALE)) > 5 * tolerance).all()


def test_the_plain_products():
    check(jnp.float32, 1e-5)  # sums of 146 numbers
    check(jnp.bfloat16, ROUNDING)


@pytest.mark.gpu
def test_the_fused_kernel():
    if not devices.has_bfloat16_units():
        pytest.skip("this device has no fused kernel")
    lowered = jax.jit(attend, static_argnums=3).lower(
        *(jnp.zeros((2, 146, 6, 128), jnp.bfloat16),) * 3, SCALE
    )
    assert "fmha" in lowered.compile().as_text()
    check(jnp.bfloat16, ROUNDING)
