"""Training objectives: masked modelling, contrastive alignment, reconstruction and robust regression.

Each is a mean over the batch, with weights or masks for entries to exclude, so that all batches of a jitted
program have the same shape.
"""

from typing import TypeVar, cast

import chex
import jax
import jax.numpy as jnp

from specjax.config import SpecFormerConfig
from specjax.models.products import matmul
from specjax.typing import FloatArray

LOGIT_SCALE = 15.5  # the published factor on the cosine similarities, used directly (no exponential)
MIN_NORM = 1e-3  # features are divided by max(norm, MIN_NORM), as published

ArrayT = TypeVar("ArrayT", jax.Array, FloatArray)


def chunk_mask(key: jax.Array, batch: int, config: SpecFormerConfig) -> jax.Array:
    """Draw the tokens that masked modelling hides: (batch, num_tokens) bool, True = hidden.

    As published, chunk c of C hides `width` tokens from c T // C + randint(0, T // C - width), where T counts
    all tokens, including that of the statistics.
    """
    chunks, width, tokens = config.mask_chunks, config.mask_width, config.num_tokens
    first = jnp.arange(chunks) * tokens // chunks
    start = first + jax.random.randint(key, (batch, chunks), 0, tokens // chunks - width)
    position = jnp.arange(tokens)
    inside = (position >= start[..., None]) & (position < start[..., None] + width)  # (b, chunks, tokens)
    return inside.any(axis=1)


def masked_modelling(predicted: jax.Array, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
    """Mean squared error over the hidden tokens.

    The published form: the mean over all positions of the masked squared error, divided by the mean of the
    mask. The loss is 0 if no token is hidden.

    Args:
        predicted: (n, t, d).
        tokens: (n, t, d), the unmasked tokens.
        hidden: (n, t) bool.
    """
    return masked_modelling_sum(predicted, tokens, hidden) / jnp.maximum(hidden.sum(), 1)


def masked_modelling_sum(predicted: jax.Array, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
    """Sum over the hidden tokens of their mean squared error; arguments as in `masked_modelling`.

    A batch can be cut into parts whose sums add up.
    """
    chex.assert_equal_shape((predicted, tokens))
    chex.assert_shape(hidden, tokens.shape[:-1])
    return (((predicted - tokens) ** 2).mean(-1) * hidden).sum()


def contrastive(z_xp: jax.Array, z_lamost: jax.Array, kind: jax.Array | None = None) -> jax.Array:
    """Symmetric cross entropy of matching the rows of z_xp (n, d) with those of z_lamost (n, d).

    With `kind` (n,), only rows of one kind are matched with each other, so that nothing is gained by telling
    the kinds apart.
    """
    chex.assert_rank(z_xp, 2)
    chex.assert_equal_shape((z_xp, z_lamost))
    z_xp, z_lamost = (_unit(z) for z in (z_xp, z_lamost))
    logits = LOGIT_SCALE * matmul(z_xp, z_lamost.T)
    if kind is not None:
        logits = jnp.where(kind[:, None] == kind, logits, -jnp.inf)
    rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1)).mean()
    columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=0)).mean()
    return cast(jax.Array, -0.5 * (rows + columns))


def _unit(z: jax.Array) -> jax.Array:
    """Divide by max(norm, MIN_NORM), with a finite gradient for rows of zeros."""
    square = (z**2).sum(axis=-1, keepdims=True)
    return z / jnp.sqrt(jnp.maximum(square, MIN_NORM**2))


def relative_distance(z: jax.Array, frozen: jax.Array) -> jax.Array:
    """Return the squared distance of each row of z (n, d) from that of the frozen model, over its length."""
    chex.assert_equal_shape((z, frozen))
    return ((z - frozen) ** 2).sum(-1) / jnp.maximum((frozen**2).sum(-1), MIN_NORM**2)


def l1(predicted: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean absolute error over the valid pixels; all three are (n, p), invalid pixels may hold any value."""
    chex.assert_equal_shape((predicted, target, valid))
    error = jnp.abs(jnp.where(valid, predicted - target, 0))
    return error.sum() / jnp.maximum(valid.sum(), 1)


def pseudo_huber(residual: ArrayT, delta: float = 0.3) -> ArrayT:
    """Return delta^2 (sqrt(1 + (r/delta)^2) - 1) of each residual r, a NumPy or JAX array.

    This is r^2/2 for small residuals and delta |r| for large ones. Labels of stellar libraries have gross
    errors, which would dominate a squared loss.
    """
    numpy = residual.__array_namespace__()
    return cast(ArrayT, delta**2 * (numpy.sqrt(1 + (residual / delta) ** 2) - 1))


def pseudo_huber_loss(residual: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted mean of `pseudo_huber` for arrays of the same shape; weight 0 excludes an entry."""
    chex.assert_equal_shape((residual, weight))
    residual = jnp.where(weight > 0, residual, 0)  # a missing label may be NaN
    return (pseudo_huber(residual) * weight).sum() / jnp.maximum(weight.sum(), 1e-6)


def label_loss(predicted: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean of `pseudo_huber` over standardised labels of one shape, none of which is missing.

    With a weight (n,) for each star, labels are (..., n, k).
    """
    every = jnp.ones_like(labels)
    return pseudo_huber_loss(predicted - labels, every if weight is None else weight[:, None] * every)
