"""SpecFormer: a pre-norm transformer over the windows of a spectrum, trained by masking chunks of them."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from specjax.config import LoRAConfig, SpecFormerConfig
from specjax.models.attention import attend
from specjax.models.layers import LoRADense, Mlp, layer_norm


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate q and joint k, v projections (k first), all open to LoRA.

    The published code multiplies q by head_dim^-1/2 and calls a kernel that does so again, so the logits are
    q.k/head_dim; the factor is `SpecFormerConfig.logit_scale`.
    """

    config: SpecFormerConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        dim, common = self.config.dim, {"lora": self.lora, "dtype": self.dtype}
        self.q_proj = LoRADense(dim, **common)
        self.kv_proj = LoRADense(2 * dim, **common)
        self.out_proj = LoRADense(dim, kernel_init=_residual_init(self.config), **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (n, t, d) to (n, t, d)."""
        heads = (*x.shape[:-1], self.config.num_heads, -1)  # (n, t, d) -> (n, t, h, d/h)
        k, v = jnp.split(self.kv_proj(x), 2, axis=-1)
        q, k, v = (part.reshape(heads) for part in (self.q_proj(x), k, v))
        mixed = attend(q, k, v, self.config.attention_scale)
        return self.out_proj(mixed.reshape(x.shape))


class Block(nn.Module):
    """x + attention(ln1(x)), then x + mlp(ln2(x))."""

    config: SpecFormerConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        config, dtype = self.config, self.dtype
        self.ln1 = layer_norm(dtype)
        self.attention = SelfAttention(config, lora=self.lora, dtype=dtype)
        self.ln2 = layer_norm(dtype)
        self.mlp = Mlp(config.mlp_dim, config.dim, kernel_init=_residual_init(config), dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (n, t, d), which stays float32 whatever the branches compute in, to (n, t, d)."""
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class SpecFormer(nn.Module):
    """The LAMOST LRS encoder; `lora` adapts q_proj, kv_proj and out_proj of every block (LoRA1).

    Tokens come from `layers.tokenise`. The Gaia XP masked transformer is the same module with other numbers.
    """

    config: SpecFormerConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        config = self.config
        self.data_embed = LoRADense(config.dim, dtype=self.dtype)
        self.position_embed = nn.Embed(config.max_len, config.dim, embedding_init=nn.initializers.normal(1.0))
        self.blocks = [Block(config, lora=self.lora, dtype=self.dtype) for _ in range(config.num_layers)]
        self.final_layernorm = layer_norm()
        self.head = LoRADense(config.token_dim)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embed tokens (n, t, token_dim) as (n, t, dim), after the final LayerNorm."""
        chex.assert_shape(tokens, (None, self.config.num_tokens, self.config.token_dim))
        x = self.data_embed(tokens) + self.position_embed.embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.final_layernorm(x)
        if self.is_initializing():  # so that init makes the parameters of predict_tokens too
            self.head(x)
        return x

    def predict_tokens(self, tokens: jax.Array) -> jax.Array:
        """Predict the tokens (n, t, token_dim) that stand behind partly masked ones of the same shape."""
        return self.head(self(tokens))


def _residual_init(config: SpecFormerConfig) -> nn.initializers.Initializer:
    # The 2 L branches add up to a residual stream of unit size.
    return nn.initializers.variance_scaling(0.5 / config.num_layers, "fan_in", "truncated_normal")
