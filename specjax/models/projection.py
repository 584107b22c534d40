"""The networks from the two encoders into the contrastive space.

With `private_dim` 0 there is one network a survey ("base", "pr"); above 0 there are two, shared and private,
whose outputs stand side by side ("split").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from specjax.config import LoRAConfig, ProjectionConfig
from specjax.models.layers import LoRADense, Mlp, gelu, layer_norm


class AttentionPool(nn.Module):
    """layernorm(MHA(query, tokens, tokens)) with one learnt query; LoRA reaches out_proj."""

    dim: int
    num_heads: int
    dropout: float
    lora: LoRAConfig | None = None

    def setup(self) -> None:  # noqa: D102
        self.query = self.param("query", nn.initializers.normal(1.0), (1, 1, self.dim))
        self.q_proj = LoRADense(self.dim)
        self.k_proj = LoRADense(self.dim)
        self.v_proj = LoRADense(self.dim)
        self.out_proj = LoRADense(self.dim, lora=self.lora)
        self.drop = nn.Dropout(self.dropout)
        self.layernorm = layer_norm()

    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Pool tokens (n, t, in) to (n, dim)."""
        head_dim = self.dim // self.num_heads
        split = (*tokens.shape[:-1], self.num_heads, head_dim)
        q = self.q_proj(self.query).reshape(self.num_heads, head_dim) * head_dim**-0.5
        k = self.k_proj(tokens).reshape(split)  # (n, t, dim) -> (n, t, h, d)
        v = self.v_proj(tokens).reshape(split)
        weights = jax.nn.softmax(jnp.einsum("hd,nthd->nht", q, k))
        pooled = jnp.einsum("nht,nthd->nhd", weights, v).reshape(-1, self.dim)  # -> (n, dim)
        pooled = self.drop(self.out_proj(pooled), deterministic=deterministic)
        return self.layernorm(pooled)


class FeatureMlp(nn.Module):
    """Linear, LayerNorm, GELU, Linear, LayerNorm, Dropout: in place of pooling, as there are no tokens."""

    hidden: int
    features: int
    dropout: float

    def setup(self) -> None:  # noqa: D102
        self.encoder = LoRADense(self.hidden)
        self.norm_hidden = layer_norm()
        self.decoder = LoRADense(self.features)
        self.norm_out = layer_norm()
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """Map x (n, in) to (n, features)."""
        hidden = gelu(self.norm_hidden(self.encoder(x)))
        return self.drop(self.norm_out(self.decoder(hidden)), deterministic=deterministic)


class LamostProjection(nn.Module):
    """LAMOST tokens to the contrastive space: a = pool(tokens), z = a + mlp(a), for each network.

    `lora` adapts out_proj of the pooling and both layers of the mlp (LoRA3).
    """

    config: ProjectionConfig
    lora: LoRAConfig | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Project tokens (n, t, d) to z (n, dim), shared then private."""
        config = self.config
        parts = []
        for prefix, dim, heads in zip(_prefixes(config), config.dims, config.num_heads, strict=False):
            pool_name = f"{prefix}attention" if prefix else "cross_attention"
            pool = AttentionPool(dim, heads, config.dropout, lora=self.lora, name=pool_name)
            mlp = Mlp(config.mlp_expansion * dim, dim, lora=self.lora, name=f"{prefix}mlp")
            pooled = pool(tokens, deterministic)
            parts.append(pooled + nn.Dropout(config.dropout)(mlp(pooled), deterministic=deterministic))
        return jnp.concatenate(parts, axis=-1)


class XPProjection(nn.Module):
    """The Gaia XP latent to the contrastive space: x = feature_mlp(projection(latent)), z = x + mlp(x)."""

    config: ProjectionConfig

    @nn.compact
    def __call__(self, latent: jax.Array, deterministic: bool = True) -> jax.Array:
        """Project the latent (n, d) to z (n, dim), shared then private."""
        config = self.config
        parts = []
        for prefix, dim in zip(_prefixes(config), config.dims, strict=True):
            x = LoRADense(dim, name=f"{prefix}projection")(latent)
            feature_mlp = FeatureMlp(config.feature_hidden, dim, config.dropout, name=f"{prefix}feature_mlp")
            mlp = Mlp(config.mlp_expansion * dim, dim, name=f"{prefix}mlp")
            x = feature_mlp(x, deterministic)
            parts.append(x + nn.Dropout(config.dropout)(mlp(x), deterministic=deterministic))
        return jnp.concatenate(parts, axis=-1)


def _prefixes(config: ProjectionConfig) -> tuple[str, ...]:
    return ("shared_", "private_") if config.private_dim else ("",)
