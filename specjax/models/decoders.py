"""Decoders from the contrastive space to the pixels of a survey."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from specjax.models.layers import LoRADense, batch_norm, gelu


class Decoder(nn.Module):
    """(Linear, GELU, BatchNorm, Dropout) for each hidden width, then a Linear layer to the pixels."""

    hidden: tuple[int, ...]
    features: int
    dropout: float

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Decode z (n, dim) to (n, features); `train` applies dropout, uses and updates batch statistics."""
        x = z
        for index, width in enumerate(self.hidden):
            x = gelu(LoRADense(width, name=f"dense_{index}")(x))
            x = batch_norm(not train, name=f"norm_{index}")(x)
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return LoRADense(self.features, name=f"dense_{len(self.hidden)}")(x)


class SplitDecoder(nn.Module):
    """The decoder of the "split" form: a projection of each part to pixels, then one network over both."""

    shared_dim: int
    features: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Decode z (n, shared + private) to (n, features); `train` has no effect."""
        shared, private = jnp.split(z, [self.shared_dim], axis=-1)
        parts = [
            LoRADense(self.features, name="shared_proj")(shared),
            LoRADense(self.features, name="private_proj")(private),
        ]
        x = gelu(LoRADense(2 * self.features, name="final_0")(jnp.concatenate(parts, axis=-1)))
        return LoRADense(self.features, name="final_1")(x)
