"""The second task of the towers' stages: the labels, by a small network that is thrown away afterwards."""

import flax.linen as nn
import jax


class LabelProbe(nn.Module):
    """A small regression network for the second tasks; it is thrown away after its stage."""

    num_labels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features x (n, d) to standardised labels (n, num_labels)."""
        x = nn.LayerNorm()(x)
        for width in (128, 64):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(self.num_labels)(x)
