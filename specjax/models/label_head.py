"""Regression heads from features to stellar labels."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from specjax.config import LabelHeadConfig, LoRAConfig
from specjax.models.layers import LoRADense, batch_norm, gelu
from specjax.models.products import FULL
from specjax.typing import Tree

RESIDUAL_WIDTH = 64
"""Hidden units of a residual head."""


class LabelHead(nn.Module):
    """(Linear, BatchNorm, ReLU, Dropout) for each hidden width, then a Linear layer to the labels.

    With `config.members` M above 1 the head is a deep ensemble: every leaf has a leading axis M and the
    outputs are averaged. With M = 1 the tree is the published one, without that axis. `lora` adapts every
    Linear layer (LoRA2, LoRA4). If the tree holds `init_residual`'s leaves, a network of one hidden layer is
    added to the output: the residual head of arXiv 2602.15021.
    """

    config: LabelHeadConfig
    lora: LoRAConfig | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool = True,
        deterministic: bool = True,
        per_member: bool = False,
    ) -> jax.Array:
        """Map standardised features to standardised labels.

        Args:
            x: (n, d).
            use_running_average: False normalises by the batch and updates the running statistics.
            deterministic: False applies dropout, with the rng "dropout".
            per_member: return the output of each member, to train each on its own loss.

        Returns:
            (n, num_labels), or (M, n, num_labels) with `per_member`.
        """
        chex.assert_rank(x, 2)

        def network(head: LabelHead, x: jax.Array) -> jax.Array:
            return head.network(x, use_running_average, deterministic)

        if self.config.members == 1:
            labels = network(self, x)
            return labels[None] if per_member else labels
        ensemble = nn.vmap(
            network,
            in_axes=None,
            out_axes=0,
            axis_size=self.config.members,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
        )
        labels = ensemble(self, x)  # (m, n, labels)
        return labels if per_member else labels.mean(axis=0)

    def network(self, x: jax.Array, use_running_average: bool, deterministic: bool) -> jax.Array:
        """Apply one member to x (n, d)."""
        config, standardised = self.config, x
        for index, width in enumerate(config.hidden_dims):
            x = LoRADense(width, lora=self.lora, name=f"dense_{index}")(x)
            x = nn.relu(batch_norm(use_running_average, name=f"norm_{index}")(x))
            x = nn.Dropout(config.dropout)(x, deterministic=deterministic)
        labels = LoRADense(config.num_labels, lora=self.lora, name=f"dense_{len(config.hidden_dims)}")(x)
        if not self.has_variable("params", "residual_0"):
            return labels
        hidden = gelu(LoRADense(RESIDUAL_WIDTH, name="residual_0")(standardised))
        return labels + LoRADense(config.num_labels, name="residual_1")(hidden)


def init_residual(key: jax.Array, config: LabelHeadConfig, width: int) -> Tree:
    """Make the leaves of a residual head on features (n, width), whose output is zero at first."""
    lead = (config.members,) if config.members > 1 else ()
    kernel = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=tuple(range(len(lead))))
    return {
        "residual_0": {
            "kernel": kernel(key, (*lead, width, RESIDUAL_WIDTH)),
            "bias": jnp.zeros((*lead, RESIDUAL_WIDTH)),
        },
        "residual_1": {
            "kernel": jnp.zeros((*lead, RESIDUAL_WIDTH, config.num_labels)),
            "bias": jnp.zeros((*lead, config.num_labels)),
        },
    }


class AuxiliaryHead(nn.Module):
    """A small regression network for the auxiliary label task of pretraining; discarded after its stage."""

    num_labels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features x (n, d) to standardised labels (n, num_labels)."""
        x = nn.LayerNorm()(x)
        for width in (128, 64):
            x = nn.gelu(nn.Dense(width, precision=FULL)(x))
        return nn.Dense(self.num_labels, precision=FULL)(x)
