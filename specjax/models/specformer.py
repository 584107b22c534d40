"""SpecFormer: a pre-norm transformer over windows of a spectrum, trained by masked modelling."""

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from specjax import devices
from specjax.config import LoRAConfig, SpecFormerConfig
from specjax.models.layers import LoRADense, Mlp, dense, layer_norm
from specjax.models.products import matmul

HALF_TYPES = (jnp.bfloat16, jnp.float16)
MAX_HEAD_DIM = 128  # of cuDNN's fused kernel on every GPU that has it; newer GPUs support 256

REMAT: Mapping[str, Any] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass of a block finds in memory: all, the outputs of its dense layers, or its input.

The rest is computed again.
"""


class SpecFormer(nn.Module):
    """The LAMOST LRS encoder; `lora` adapts q_proj, kv_proj and out_proj of every block (LoRA1).

    Tokens come from `tokens.tokenise`. The Gaia XP masked transformer is the same module with another
    configuration. `remat` is a key of `REMAT`.
    """

    config: SpecFormerConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None
    remat: str = "none"

    def setup(self) -> None:  # noqa: D102
        config = self.config
        self.data_embed = LoRADense(config.dim, dtype=self.dtype)
        self.position_embed = nn.Embed(config.max_len, config.dim, embedding_init=nn.initializers.normal(1.0))
        block = Block if self.remat == "none" else nn.remat(Block, policy=REMAT[self.remat])
        self.blocks = [block(config, lora=self.lora, dtype=self.dtype) for _ in range(config.num_layers)]
        self.final_layernorm = layer_norm()
        self.head = LoRADense(config.token_dim)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embed tokens (n, t, token_dim) as (n, t, dim), after the final LayerNorm."""
        chex.assert_shape(tokens, (None, self.config.num_tokens, self.config.token_dim))
        x = self.from_block(self.to_block(tokens, 0), 0)
        if self.is_initializing():  # so that init creates the parameters of predict_tokens too
            self.head(x)
        return x

    def to_block(self, tokens: jax.Array, block: int) -> jax.Array:
        """Run tokens (n, t, token_dim) up to the input (n, t, dim) of a block."""
        x = self.data_embed(tokens) + self.position_embed.embedding[: tokens.shape[1]]
        for one in self.blocks[:block]:
            x = one(x)
        return x

    def from_block(self, x: jax.Array, block: int) -> jax.Array:
        """Run the input (n, t, dim) of a block to the end, after the final LayerNorm."""
        for one in self.blocks[block:]:
            x = one(x)
        return self.final_layernorm(x)

    def predict_tokens(self, tokens: jax.Array) -> jax.Array:
        """Predict the unmasked tokens (n, t, token_dim) from partly masked ones of the same shape."""
        return self.head(self(tokens))


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
        """Map x (n, t, d) to (n, t, d); both are float32, whatever the dtype of the two branches."""
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention with a q projection and a joint k, v projection (k first); LoRA reaches all.

    The published code multiplies q by head_dim^-1/2 and calls a kernel that does so again, so the logits are
    q.k/head_dim; the factor is `SpecFormerConfig.attention_scale`.
    """

    config: SpecFormerConfig
    lora: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        layer = functools.partial(LoRADense, lora=self.lora, dtype=self.dtype)
        self.q_proj = layer(self.config.dim)
        self.kv_proj = layer(2 * self.config.dim)
        self.out_proj = layer(self.config.dim, kernel_init=_residual_init(self.config))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (n, t, d) to (n, t, d)."""
        heads = (*x.shape[:-1], self.config.num_heads, -1)  # (n, t, d) -> (n, t, h, d/h)
        q, k, v = (part.reshape(heads) for part in dense(x, self.q_proj, self.kv_proj, cuts=(1, 2)))
        mixed = attend(q, k, v, self.config.attention_scale)
        return self.out_proj(mixed.reshape(x.shape))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> jax.Array:
    """Return softmax(scale q k^T) v for q, k and v (n, t, h, d), by cuDNN's fused kernel where it applies.

    The softmax is computed in float32 for arrays of any type.
    """
    if _fused_kernel_applies(q):
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    # With the head axis in front a CPU runs plain matrix products, twice as fast.
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))  # (n, t, h, d) -> (n, h, t, d)
    if q.dtype in HALF_TYPES:
        logits = matmul(q, k.mT, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scale * logits).astype(q.dtype)
    else:
        weights = jax.nn.softmax(matmul(q * scale, k.mT))  # (n, h, t, t)
    return jnp.swapaxes(matmul(weights, v), 1, 2)


def _fused_kernel_applies(q: jax.Array) -> bool:
    """Return whether q (n, t, h, d) is in half precision, on a GPU that knows it, and not too wide."""
    head_dim = q.shape[-1]
    fits = q.dtype in HALF_TYPES and head_dim <= MAX_HEAD_DIM and head_dim % 8 == 0
    return fits and jax.default_backend() == "gpu" and devices.has_bfloat16_units()


def _residual_init(config: SpecFormerConfig) -> nn.initializers.Initializer:
    # The 2 L branches add up to a residual stream of unit variance.
    return nn.initializers.variance_scaling(0.5 / config.num_layers, "fan_in", "truncated_normal")
