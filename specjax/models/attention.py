"""softmax(scale q k^T) v, by the fused kernel of the accelerator where it takes the arrays."""

import jax
import jax.numpy as jnp

HALF_TYPES = (jnp.bfloat16, jnp.float16)
MAX_HEAD_DIM = 128  # of the fused kernel on every GPU that has it; newer ones go to 256


def attend(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> jax.Array:
    """Attend from q to k and v, all (n, t, h, d), with logits scale q.k; returns (n, t, h, d).

    The softmax is computed in float32 whatever the type of the arrays.
    """
    if takes_fused_kernel(q):
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    # With the heads in front a CPU runs plain matrix products, twice as fast.
    q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))  # (n, t, h, d) -> (n, h, t, d)
    if q.dtype in HALF_TYPES:
        logits = jnp.matmul(q, k.mT, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scale * logits).astype(q.dtype)
    else:
        weights = jax.nn.softmax((q * scale) @ k.mT)  # (n, h, t, t)
    return jnp.swapaxes(weights @ v, 1, 2)


def takes_fused_kernel(q: jax.Array) -> bool:
    """Say whether the fused kernel takes q (n, t, h, d): half precision, on a GPU, heads not too wide."""
    head_dim = q.shape[-1]
    fits = q.dtype in HALF_TYPES and head_dim <= MAX_HEAD_DIM and head_dim % 8 == 0
    return fits and jax.default_backend() == "gpu"
