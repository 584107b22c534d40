"""Standardise spectra, cut them into tokens and join tokens back into spectra."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import SpecFormerConfig
from specjax.typing import IntArray

# A spectrum whose standard deviation is below this fraction of its mean has no contrast that float32 can
# resolve: the rounding error of the mean alone is several 1e-7.
MIN_CONTRAST = 1e-6


def standardise(flux: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return ((flux - mean)/std, mean, std) over the last axis, with ddof = 1.

    The published arithmetic is undefined for a constant spectrum (0/0). Here a spectrum with a standard
    deviation below MIN_CONTRAST |mean| or with fewer than two valid pixels becomes all zeros with std = 1:
    the model sees a spectrum without lines.

    Args:
        flux: (..., p).
        valid: (..., p) bool, the pixels that enter mean and std; the others, which may be NaN, become 0, the
            mean. None uses all pixels.

    Returns:
        The standardised flux (..., p), mean (..., 1) and std (..., 1).
    """
    if valid is None:
        valid = jnp.ones((), bool)
    valid = jnp.broadcast_to(valid, flux.shape)
    weight = valid.astype(flux.dtype)
    flux = jnp.where(valid, flux, 0)
    count = weight.sum(-1, keepdims=True)
    mean = flux.sum(-1, keepdims=True) / jnp.maximum(count, 1)
    deviation = (flux - mean) * weight
    variance = (deviation**2).sum(-1, keepdims=True) / jnp.maximum(count - 1, 1)
    contrast = variance > (MIN_CONTRAST * mean) ** 2
    # The inner where keeps the gradient of sqrt finite at zero.
    std = jnp.where(contrast, jnp.sqrt(jnp.where(contrast, variance, 1)), 1)
    return jnp.where(contrast, deviation / std, 0), mean, std


def tokenise(flux: jax.Array, config: SpecFormerConfig, valid: jax.Array | None = None) -> jax.Array:
    """Cut spectra (..., p) on the model grid into tokens (..., num_tokens, token_dim).

    Each token has the columns of the statistics first and those of a window after them. Token 0 holds the
    statistics of the spectrum (log10 of the standard deviation for LAMOST) and zeros; token 1 + w holds zeros
    and window w of the standardised flux or, with config.flux_scale, of (flux - 1)/flux_scale. `valid`
    (..., p) is True where the flux may be used; the other pixels are 0, see `standardise`.
    """
    chex.assert_axis_dimension(flux, -1, config.num_pixels)
    x, mean, std = standardise(flux, valid)
    values = {"mean": mean, "std": std, "log10_std": jnp.log10(std)}
    head = jnp.concatenate([values[name] for name in config.statistics], -1)  # (..., s)
    if config.flux_scale is not None:
        x = (flux - 1) / config.flux_scale
        x = x if valid is None else jnp.where(valid, x, 0)
    windows = x[..., _window_indices(config)]  # (..., p) -> (..., windows, window)
    lead = [(0, 0)] * (flux.ndim - 1)
    windows = jnp.pad(windows, [*lead, (1, 0), (len(config.statistics), 0)])  # -> (..., tokens, s + window)
    return windows.at[..., 0, : len(config.statistics)].set(head)


def detokenise(tokens: jax.Array, config: SpecFormerConfig) -> jax.Array:
    """Join tokens (..., num_tokens, token_dim) to standardised flux (..., p), averaged where windows overlap.

    Pixels outside all windows (the last two of LAMOST) take the value of the nearest covered pixel.
    """
    windows = tokens[..., 1:, len(config.statistics) :]
    indices = _window_indices(config)
    count = np.bincount(indices.ravel(), minlength=config.num_pixels)
    total = jnp.zeros((*tokens.shape[:-2], config.num_pixels), tokens.dtype).at[..., indices].add(windows)
    nearest = np.minimum(np.arange(config.num_pixels), indices.max())
    return total[..., nearest] / count[nearest]


def _window_indices(config: SpecFormerConfig) -> IntArray:
    starts = config.stride * np.arange(config.num_windows)
    return starts[:, None] + np.arange(config.window)  # (windows, window)
