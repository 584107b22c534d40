"""The networks from the two encoders into the contrastive space.

With `private_dim` 0 there is one network a survey ("base", "pr"); above 0 there are two, shared and private,
whose outputs stand side by side ("split").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from specjax.config import LoRAConfig, ProjectionConfig
from specjax.models.layers import LoRADense, Mlp, gelu, layer_norm


class TokenLogits(nn.Module):
    """q.(x W + b) of the keys x W + b of all tokens x, without making the keys.

    There is one query for all spectra, so (q W^T).x needs a vector a head where the keys would be a matrix
    product over all tokens. The parameters are those of a `LoRADense`.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, q: jax.Array, tokens: jax.Array) -> jax.Array:
        """Map the query q (h, d) and tokens (n, t, in) to logits (n, h, t), float32."""
        kernel, bias = _dense_parameters(self, tokens.shape[-1], q.size)
        probe = jnp.einsum("ihd,hd->hi", kernel.reshape(-1, *q.shape), q)
        probe, tokens = nn.dtypes.promote_dtype(probe, tokens, dtype=self.dtype)
        logits = jnp.einsum("hi,nti->nht", probe, tokens, preferred_element_type=jnp.float32)
        return logits + (bias.reshape(q.shape) * q).sum(-1)[:, None]


class MixedValues(nn.Module):
    """The weighted mean over tokens of their values x W + b, as (the weighted mean of x) W + b."""

    dim: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, weights: jax.Array, tokens: jax.Array) -> jax.Array:
        """Map weights (n, h, t) that add up to 1 and tokens (n, t, in) to (n, dim), head after head."""
        kernel, bias = _dense_parameters(self, tokens.shape[-1], self.dim)
        weights, tokens, kernel = nn.dtypes.promote_dtype(weights, tokens, kernel, dtype=self.dtype)
        mixed = weights @ tokens  # (n, h, in)
        heads = jnp.einsum("nhi,ihd->nhd", mixed, kernel.reshape(len(kernel), weights.shape[1], -1))
        return heads.reshape(-1, self.dim) + bias.astype(heads.dtype)


def _dense_parameters(module: nn.Module, inputs: int, features: int) -> tuple[jax.Array, jax.Array]:
    kernel = module.param("kernel", nn.initializers.lecun_normal(), (inputs, features))
    return kernel, module.param("bias", nn.initializers.zeros, (features,))


class AttentionPool(nn.Module):
    """layernorm(MHA(query, tokens, tokens)) with one learnt query; LoRA reaches out_proj."""

    dim: int
    num_heads: int
    dropout: float
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        self.query = self.param("query", nn.initializers.normal(1.0), (1, 1, self.dim))
        self.q_proj = LoRADense(self.dim)
        self.k_proj = TokenLogits(self.dtype)
        self.v_proj = MixedValues(self.dim, self.dtype)
        self.out_proj = LoRADense(self.dim, lora=self.lora, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        self.layernorm = layer_norm(jnp.float32)

    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Pool tokens (n, t, in) to (n, dim)."""
        return self.project(self.mix(tokens), deterministic)

    def mix(self, tokens: jax.Array) -> jax.Array:
        """Mix tokens (n, t, in) to (n, dim), before out_proj: nothing in it is ever adapted."""
        head_dim = self.dim // self.num_heads
        q = self.q_proj(self.query).reshape(self.num_heads, head_dim) * head_dim**-0.5
        weights = jax.nn.softmax(self.k_proj(q, tokens))  # (n, h, t)
        return self.v_proj(weights, tokens)

    def project(self, mixed: jax.Array, deterministic: bool = True) -> jax.Array:
        """Finish from the output (n, dim) of `mix`."""
        return self.layernorm(self.drop(self.out_proj(mixed), deterministic=deterministic))


class FeatureMlp(nn.Module):
    """Linear, LayerNorm, GELU, Linear, LayerNorm, Dropout: in place of pooling, as there are no tokens."""

    hidden: int
    features: int
    dropout: float
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        self.encoder = LoRADense(self.hidden, dtype=self.dtype)
        self.norm_hidden = layer_norm(self.dtype)
        self.decoder = LoRADense(self.features, dtype=self.dtype)
        self.norm_out = layer_norm(jnp.float32)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """Map x (n, in) to (n, features)."""
        hidden = gelu(self.norm_hidden(self.encoder(x)))
        return self.drop(self.norm_out(self.decoder(hidden)), deterministic=deterministic)


class LamostProjection(nn.Module):
    """LAMOST tokens to the contrastive space: a = pool(tokens), z = a + mlp(a), for each network.

    `lora` adapts out_proj of the pooling and both layers of the mlp (LoRA3). What comes before them,
    `mix`, can be computed once and kept: one vector a spectrum in place of its tokens.
    """

    config: ProjectionConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        config, common = self.config, {"lora": self.lora, "dtype": self.dtype}
        for prefix, dim, heads in zip(_prefixes(config), config.dims, config.num_heads, strict=False):
            setattr(self, _pool_name(prefix), AttentionPool(dim, heads, config.dropout, **common))
            setattr(self, f"{prefix}mlp", Mlp(config.mlp_expansion * dim, dim, **common))
        self.drop = nn.Dropout(config.dropout)

    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Project tokens (n, t, d) to z (n, dim), shared then private."""
        return self.project(self.mix(tokens), deterministic)

    def mix(self, tokens: jax.Array) -> jax.Array:
        """Mix tokens (n, t, d) to (n, dim), shared then private, before anything that LoRA3 adapts."""
        pools = [getattr(self, _pool_name(prefix)) for prefix in _prefixes(self.config)]
        return jnp.concatenate([pool.mix(tokens) for pool in pools], axis=-1)

    def project(self, mixed: jax.Array, deterministic: bool = True) -> jax.Array:
        """Finish from the output (n, dim) of `mix`: z (n, dim)."""
        parts = []
        cuts = [self.config.shared_dim] if self.config.private_dim else []
        for prefix, part in zip(_prefixes(self.config), jnp.split(mixed, cuts, axis=-1), strict=True):
            pooled = getattr(self, _pool_name(prefix)).project(part, deterministic)
            update = getattr(self, f"{prefix}mlp")(pooled)
            parts.append(pooled + self.drop(update, deterministic=deterministic))
        return jnp.concatenate(parts, axis=-1)


class XPProjection(nn.Module):
    """The Gaia XP latent to the contrastive space: x = feature_mlp(projection(latent)), z = x + mlp(x)."""

    config: ProjectionConfig
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, latent: jax.Array, deterministic: bool = True) -> jax.Array:
        """Project the latent (n, d) to z (n, dim), shared then private."""
        config, dtype = self.config, self.dtype
        parts = []
        for prefix, dim in zip(_prefixes(config), config.dims, strict=True):
            x = LoRADense(dim, dtype=dtype, name=f"{prefix}projection")(latent)
            feature_mlp = FeatureMlp(
                config.feature_hidden, dim, config.dropout, dtype, name=f"{prefix}feature_mlp"
            )
            mlp = Mlp(config.mlp_expansion * dim, dim, dtype=dtype, name=f"{prefix}mlp")
            x = feature_mlp(x, deterministic)
            parts.append(x + nn.Dropout(config.dropout)(mlp(x), deterministic=deterministic))
        return jnp.concatenate(parts, axis=-1)


def _prefixes(config: ProjectionConfig) -> tuple[str, ...]:
    return ("shared_", "private_") if config.private_dim else ("",)


def _pool_name(prefix: str) -> str:
    return f"{prefix}attention" if prefix else "cross_attention"
