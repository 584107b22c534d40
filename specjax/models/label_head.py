"""The regression head from 768 features to stellar labels, alone or as a deep ensemble."""

import chex
import flax.linen as nn
import jax

from specjax.config import LabelHeadConfig, LoRAConfig
from specjax.models.layers import LoRADense, batch_norm


class LabelHead(nn.Module):
    """(Linear, BatchNorm, ReLU, Dropout) for each hidden width, then Linear to the labels.

    With `config.members` M above 1 every leaf has a leading axis M and the outputs are averaged; with 1 the
    tree is the published one without that axis. `lora` adapts every Linear (LoRA2, LoRA4).
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
        """Map standardised features x (n, d) to standardised labels (n, num_labels).

        use_running_average False normalises by the batch and updates the running statistics; deterministic
        False drops units (needs the rng "dropout"). per_member returns (M, n, num_labels) before the average,
        to train each member on its own loss.
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
        """Run one member on x (n, d)."""
        config = self.config
        for index, width in enumerate(config.hidden_dims):
            x = LoRADense(width, lora=self.lora, name=f"dense_{index}")(x)
            x = nn.relu(batch_norm(use_running_average, name=f"norm_{index}")(x))
            x = nn.Dropout(config.dropout)(x, deterministic=deterministic)
        return LoRADense(config.num_labels, lora=self.lora, name=f"dense_{len(config.hidden_dims)}")(x)
