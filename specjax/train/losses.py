"""The objectives: masked modelling, contrastive alignment, reconstruction and robust regression.

All are means over the batch and take weights or masks where some entries do not count, so that every batch of
a jitted program has one shape.
"""

import chex
import jax
import jax.numpy as jnp

from specjax.config import SpecFormerConfig

LOGIT_SCALE = 15.5  # the published factor on the cosine similarities, used directly (no exponential)
MIN_NORM = 1e-3  # features are divided by max(norm, this), as published


def chunk_mask(key: jax.Array, batch: int, config: SpecFormerConfig) -> jax.Array:
    """Draw which tokens masked modelling hides: (batch, num_tokens) bool, True = hidden.

    As published: for chunk c of C, start = c T // C + randint(0, T // C - width), and the `width` tokens from
    there are hidden, T being all tokens with the row of statistics.
    """
    chunks, width, tokens = config.mask_chunks, config.mask_width, config.num_tokens
    first = jnp.arange(chunks) * tokens // chunks
    start = first + jax.random.randint(key, (batch, chunks), 0, tokens // chunks - width)
    position = jnp.arange(tokens)
    inside = (position >= start[..., None]) & (position < start[..., None] + width)  # (b, chunks, tokens)
    return inside.any(axis=1)


def masked_modelling(predicted: jax.Array, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
    """Mean squared error over the hidden tokens.

    predicted and tokens are (n, t, d), hidden (n, t) bool. Published form: the mean over all positions of the
    masked squared error, divided by the mean of the mask. 0 where nothing is hidden.
    """
    chex.assert_equal_shape((predicted, tokens))
    error = ((predicted - tokens) ** 2).mean(-1) * hidden
    return error.mean() / jnp.maximum(hidden.mean(), 1 / hidden.size)


def contrastive(z_xp: jax.Array, z_lamost: jax.Array) -> jax.Array:
    """Symmetric cross entropy of matching the rows of z_xp (n, d) with those of z_lamost (n, d)."""
    chex.assert_equal_shape((z_xp, z_lamost))
    z_xp, z_lamost = (_unit(z) for z in (z_xp, z_lamost))
    logits = LOGIT_SCALE * z_xp @ z_lamost.T
    rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1)).mean()
    columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=0)).mean()
    return -0.5 * (rows + columns)


def _unit(z: jax.Array) -> jax.Array:
    """Divide by max(norm, MIN_NORM), with a finite gradient for a row of zeros too."""
    square = (z**2).sum(axis=-1, keepdims=True)
    return z / jnp.sqrt(jnp.maximum(square, MIN_NORM**2))


def l1(predicted: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean absolute error over the valid pixels, all three (n, p); the others may hold anything."""
    error = jnp.abs(jnp.where(valid, predicted - target, 0))
    return error.sum() / jnp.maximum(valid.sum(), 1)


def pseudo_huber(residual: jax.Array, weight: jax.Array, delta: float = 0.3) -> jax.Array:
    """Weighted mean of delta^2 (sqrt(1 + (r/delta)^2) - 1): r^2/2 for small residuals, delta |r| for large.

    residual and weight have one shape; weight 0 leaves an entry out. Labels of stellar libraries have gross
    errors, which a squared loss would follow.
    """
    chex.assert_equal_shape((residual, weight))
    residual = jnp.where(weight > 0, residual, 0)  # a missing label may be NaN
    loss = delta**2 * (jnp.sqrt(1 + (residual / delta) ** 2) - 1)
    return (loss * weight).sum() / jnp.maximum(weight.sum(), 1e-6)
