"""The autoencoder of Gaia XP spectra: a multilayer perceptron with a bottleneck."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from specjax.config import XPAutoencoderConfig
from specjax.models.layers import LoRADense, Mlp, layer_norm
from specjax.models.tokens import standardise


def xp_vector(flux: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Return the input [mean, std, standardised flux] (..., p + 2) of flux (..., p) relative to 550 nm."""
    x, mean, std = standardise(flux, valid)
    return jnp.concatenate([mean, std, x], axis=-1)


def xp_flux(vector: jax.Array) -> jax.Array:
    """Return the flux (..., p) of an (..., p + 2) vector; the inverse of `xp_vector`."""
    mean, std, x = vector[..., :1], vector[..., 1:2], vector[..., 2:]
    return mean + std * x


class XPBlock(nn.Module):
    """mlp(norm(x)), without a residual connection, as published."""

    config: XPAutoencoderConfig
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        width = self.config.hidden_dim
        self.norm = layer_norm(self.dtype)
        self.mlp = Mlp(self.config.expansion * width, width, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (n, hidden) to (n, hidden)."""
        return self.mlp(self.norm(x))


class XPAutoencoder(nn.Module):
    """Gaia XP spectra to a latent vector and back; inputs are made by `xp_vector`."""

    config: XPAutoencoderConfig
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        config, dtype = self.config, self.dtype
        self.input_proj = LoRADense(config.hidden_dim, dtype=dtype)
        self.encoder_blocks = [XPBlock(config, dtype) for _ in range(config.num_blocks)]
        self.bottleneck_down = LoRADense(config.latent_dim, dtype=dtype)
        self.bottleneck_norm = layer_norm(jnp.float32)
        self.bottleneck_up = LoRADense(config.hidden_dim)
        self.decoder_blocks = [XPBlock(config) for _ in range(config.num_blocks)]
        self.output_proj = LoRADense(config.num_pixels + 2)

    def __call__(self, vector: jax.Array) -> jax.Array:
        """Encode (n, p + 2) to the latent (n, latent_dim)."""
        chex.assert_shape(vector, (None, self.config.num_pixels + 2))
        hidden = self.input_proj(vector)
        for block in self.encoder_blocks:
            hidden = block(hidden)
        latent = self.bottleneck_norm(self.bottleneck_down(hidden))
        if self.is_initializing():  # so that init creates the parameters of decode too
            self.decode(latent)
        return latent

    def decode(self, latent: jax.Array) -> jax.Array:
        """Decode the latent (n, latent_dim) to (n, p + 2): mean, std and standardised flux."""
        hidden = self.bottleneck_up(latent)
        for block in self.decoder_blocks:
            hidden = block(hidden)
        return self.output_proj(hidden)

    def reconstruct(self, vector: jax.Array) -> jax.Array:
        """Encode and decode (n, p + 2)."""
        return self.decode(self(vector))
