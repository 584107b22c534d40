"""Projections of the two encoders' outputs into the contrastive space.

With `private_dim` 0 there is one network per survey ("base", "pr"). Above 0 there are two, shared and
private, and their outputs are concatenated ("split").
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from specjax.config import LoRAConfig, ProjectionConfig
from specjax.models.layers import LoRADense, Mlp, gelu, layer_norm
from specjax.models.products import einsum, matmul


class TokenLogits(nn.Module):
    """Attention logits q.(x W + b) of one query with the keys x W + b, without computing the keys.

    The query is the same for all spectra: (q W^T).x needs one vector per head, the keys would be a matrix
    product over all tokens. The parameters are those of a `LoRADense`.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, q: jax.Array, tokens: jax.Array) -> jax.Array:
        """Map the query q (h, d) and tokens (n, t, in) to logits (n, h, t), float32."""
        kernel, bias = _dense_parameters(self, tokens.shape[-1], q.size)
        query = einsum("ihd,hd->hi", kernel.reshape(-1, *q.shape), q)
        query, tokens = nn.dtypes.promote_dtype(query, tokens, dtype=self.dtype)
        logits = einsum("hi,nti->nht", query, tokens, preferred_element_type=jnp.float32)
        return logits + (bias.reshape(q.shape) * q).sum(-1)[:, None]


class MixedValues(nn.Module):
    """The weighted mean over tokens of the values x W + b, computed as (weighted mean of x) W + b."""

    dim: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, weights: jax.Array, tokens: jax.Array) -> jax.Array:
        """Map weights (n, h, t), of sum 1 over t, and tokens (n, t, in) to (n, dim), ordered by head."""
        kernel, bias = _dense_parameters(self, tokens.shape[-1], self.dim)
        weights, tokens, kernel = nn.dtypes.promote_dtype(weights, tokens, kernel, dtype=self.dtype)
        mixed = matmul(weights, tokens)  # (n, h, in)
        heads = einsum("nhi,ihd->nhd", mixed, kernel.reshape(len(kernel), weights.shape[1], -1))
        return heads.reshape(-1, self.dim) + bias.astype(heads.dtype)


def _dense_parameters(module: nn.Module, inputs: int, features: int) -> tuple[jax.Array, jax.Array]:
    kernel = module.param("kernel", nn.initializers.lecun_normal(), (inputs, features))
    return kernel, module.param("bias", nn.initializers.zeros, (features,))


class AttentionPool(nn.Module):
    """Attention pooling, layernorm(MHA(query, tokens, tokens)), with a learnt query; LoRA adapts out_proj."""

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
        """Mix tokens (n, t, in) to (n, dim), before out_proj; these layers are never adapted."""
        head_dim = self.dim // self.num_heads
        q = self.q_proj(self.query).reshape(self.num_heads, head_dim) * head_dim**-0.5
        weights = jax.nn.softmax(self.k_proj(q, tokens))  # (n, h, t)
        return self.v_proj(weights, tokens)

    def project(self, mixed: jax.Array, deterministic: bool = True) -> jax.Array:
        """Map the output (n, dim) of `mix` to the pooled vector (n, dim)."""
        return self.layernorm(self.drop(self.out_proj(mixed), deterministic=deterministic))


class FeatureMlp(nn.Module):
    """Linear, LayerNorm, GELU, Linear, LayerNorm, Dropout; replaces pooling, as there are no tokens."""

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

    `lora` adapts out_proj of the pooling and both layers of the mlp (LoRA3). The output of the layers before
    them, `mix`, can be cached: one vector per spectrum instead of its tokens.
    """

    config: ProjectionConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        config = self.config
        pool = functools.partial(AttentionPool, dropout=config.dropout, lora=self.lora, dtype=self.dtype)
        mlp = functools.partial(Mlp, lora=self.lora, dtype=self.dtype)
        for prefix, dim, heads in zip(_prefixes(config), config.dims, config.num_heads, strict=False):
            setattr(self, _pool_name(prefix), pool(dim, heads))
            setattr(self, f"{prefix}mlp", mlp(config.mlp_expansion * dim, dim))
        self.drop = nn.Dropout(config.dropout)

    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Project tokens (n, t, d) to z (n, dim), shared then private."""
        return self.project(self.mix(tokens), deterministic)

    def mix(self, tokens: jax.Array) -> jax.Array:
        """Mix tokens (n, t, d) to (n, dim), shared then private, before the first layer that LoRA3 adapts."""
        pools = [getattr(self, _pool_name(prefix)) for prefix in _prefixes(self.config)]
        return jnp.concatenate([pool.mix(tokens) for pool in pools], axis=-1)

    def project(self, mixed: jax.Array, deterministic: bool = True) -> jax.Array:
        """Map the output (n, dim) of `mix` to z (n, dim)."""
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
