"""Building blocks of all models: the dense layer with an optional LoRA term, the MLP, GELU and norms.

The arithmetic follows the published PyTorch modules: exact (erf) GELU, LayerNorm and BatchNorm with eps 1e-5.

The `dtype` of a module is the type of its matrix products and of its output; parameters, means, variances and
the arguments of exponentials and erf stay float32. With None a module computes in the type of its input.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from specjax.config import LoRAConfig
from specjax.lora import init_lora_a

EPSILON = 1e-5  # the default of torch.nn.LayerNorm and torch.nn.BatchNorm1d


class LoRADense(nn.Module):
    """A dense layer with an optional low-rank term: y = x W + b + (alpha/rank) (x A) B.

    Without `lora` the parameters are exactly {kernel (in, out), bias (out,)}; with it, `init` adds lora_a
    (in, rank), drawn by `init_lora_a`, and lora_b (rank, out), zero. Afterwards the tree decides: the term is
    there if the factors are, at the rank that they have, times the scale of `lora`. The two products are
    computed separately: under a vmap over seeds that batches only A and B, the product with W remains one
    large matrix product over all seeds.
    """

    features: int
    lora: LoRAConfig | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (..., in) to (..., features)."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x @ kernel + bias
        if self.lora is None or not (self.is_initializing() or self.has_variable("params", "lora_a")):
            return y
        if self.is_initializing():
            down = self.param("lora_a", init_lora_a, (x.shape[-1], self.lora.rank))
            up = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features))
        else:
            down, up = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
        down, up = nn.dtypes.promote_dtype(down, up, dtype=self.dtype)
        return y + low_rank(x, down, up, self.lora.scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def low_rank(x: jax.Array, down: jax.Array, up: jax.Array, scale: float) -> jax.Array:
    """Return scale (x A) B for x (..., in), `down` A (in, rank) and `up` B (rank, out).

    The derivative is defined by hand so that only arrays of width `rank` are scaled and transposed. With
    automatic differentiation XLA transposes the gradient of the output to obtain that of B, which on a CPU
    takes longer than the products themselves.
    """
    return (scale * (x @ down)) @ up


def _low_rank_forward(
    x: jax.Array, down: jax.Array, up: jax.Array, scale: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    thin = scale * (x @ down)  # (..., rank)
    return thin @ up, (x, down, up, thin)


def _low_rank_backward(
    scale: float, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, down, up, thin = saved
    thin_gradient = scale * (gradient @ up.T)  # (..., rank)
    # (rank, in): with x transposed instead, the product takes six times as long on a CPU. Without the barrier
    # XLA would merge the transposition into the product and transpose x.
    down_gradient = jax.lax.optimization_barrier(_rows(thin_gradient).T @ _rows(x)).T
    return thin_gradient @ down.T, down_gradient, _rows(thin).T @ _rows(gradient)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear: the MLP of transformer blocks, projections and XP blocks."""

    hidden: int
    features: int
    lora: LoRAConfig | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        self.encoder = LoRADense(self.hidden, lora=self.lora, dtype=self.dtype)
        self.decoder = LoRADense(
            self.features, lora=self.lora, kernel_init=self.kernel_init, dtype=self.dtype
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (..., in) to (..., features)."""
        return self.decoder(gelu(self.encoder(x)))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return the exact GELU, x Phi(x) with erf; the tanh approximation differs by up to 5e-4.

    The formula is that of PyTorch: jax.nn.gelu uses erfc, which costs more than twice as much on a CPU. The
    derivative, Phi(x) + x phi(x), is computed from x alone, which halves the memory of the backward pass.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) / (2 * np.pi) ** 0.5
    return ((gradient * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def layer_norm(dtype: DTypeLike | None = None, name: str | None = None) -> nn.LayerNorm:
    """Return a LayerNorm with PyTorch's epsilon and a two-pass float32 variance; the output has `dtype`."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=dtype, name=name)


def batch_norm(use_running_average: bool, name: str) -> nn.BatchNorm:
    """Return a BatchNorm over the batch axis with PyTorch's epsilon and momentum.

    Flax's momentum is one minus PyTorch's (0.9 for 0.1). Its running variance is the biased estimate,
    PyTorch's the unbiased one, larger by n/(n - 1); inference is the same.
    """
    return nn.BatchNorm(
        use_running_average=use_running_average,
        momentum=0.9,
        epsilon=EPSILON,
        use_fast_variance=False,
        name=name,
    )
