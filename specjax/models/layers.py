"""What every model is made of: the dense layer that LoRA can reach, norms, and the way from flux to tokens.

The arithmetic follows the published PyTorch modules: exact (erf) GELU, LayerNorm and BatchNorm with eps 1e-5,
standard deviations with ddof = 1.

`dtype` of a module is the type of its matrix products and of what it returns; parameters stay float32, as do
means, variances and what an exponential or erf sees. None computes in the type of what comes in.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from specjax.config import LoRAConfig, SpecFormerConfig

EPSILON = 1e-5  # the default of torch.nn.LayerNorm and torch.nn.BatchNorm1d

# A spectrum whose standard deviation is below this fraction of its mean has no contrast that float32 can
# hold: the rounding error of the mean alone is several 1e-7.
MIN_CONTRAST = 1e-6

# Kaiming uniform with a = sqrt(5), as in the LoRA paper's code: uniform within 1/sqrt(inputs).
lora_a_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoRADense(nn.Module):
    """A dense layer with an optional low-rank term: y = x W + b + (alpha/rank) (x A) B.

    Without `lora` the parameters are exactly {kernel (in, out), bias (out,)}; with it lora_a (in, rank),
    random, and lora_b (rank, out), zero, stand beside them. The two products stay apart, so that under a vmap
    over seeds that batches only A and B the product with W is one large matrix product over all seeds.
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
        if self.lora is None:
            return y
        down = self.param("lora_a", lora_a_init, (x.shape[-1], self.lora.rank))
        up = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features))
        down, up = nn.dtypes.promote_dtype(down, up, dtype=self.dtype)
        return y + low_rank(x, down, up, self.lora.scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def low_rank(x: jax.Array, down: jax.Array, up: jax.Array, scale: float) -> jax.Array:
    """Return scale (x A) B for x (..., in), down A (in, rank) and up B (rank, out).

    The derivative is written out so that only arrays of width `rank` are scaled and transposed. Left to
    itself, XLA transposes the gradient of the output for that of B, which on a CPU takes longer than the
    products do.
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
    # (rank, in): turned round, with x transposed, XLA's product takes six times as long on a CPU. Without the
    # barrier it would join the transposition to the product and turn it round.
    down_gradient = jax.lax.optimization_barrier(_rows(thin_gradient).T @ _rows(x)).T
    return thin_gradient @ down.T, down_gradient, _rows(thin).T @ _rows(gradient)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear: the feed-forward network of blocks, projections and the autoencoder."""

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

    Written out as torch has it: jax.nn.gelu takes erfc, which costs more than twice as much on a CPU. The
    derivative, Phi(x) + x phi(x), comes from x alone: half the memory, and one erf less to wait for.
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
    """Return a LayerNorm with torch's epsilon and a two-pass variance, in float32; the result has `dtype`."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=dtype, name=name)


def batch_norm(use_running_average: bool, name: str) -> nn.BatchNorm:
    """Return a BatchNorm over the batch axis with torch's epsilon and momentum.

    flax counts the momentum from the other end (0.9 is torch's 0.1), and its running variance is the biased
    one where torch stores n/(n - 1) times that; inference is the same.
    """
    return nn.BatchNorm(
        use_running_average=use_running_average,
        momentum=0.9,
        epsilon=EPSILON,
        use_fast_variance=False,
        name=name,
    )


def standardise(flux: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return ((flux - mean)/std, mean, std) over the last axis, std with ddof = 1.

    flux is (..., p); mean and std come back as (..., 1). With `valid` (..., p) only those pixels enter mean
    and std, and the others are 0 (the mean) afterwards, whatever they held, NaN included.

    The published arithmetic is undefined for a spectrum without contrast (0/0). Here one whose std is below
    MIN_CONTRAST |mean|, or that has fewer than two valid pixels, becomes all zeros with std = 1, which is
    finite and says the same thing to the model: no line anywhere.
    """
    if valid is None:
        valid = jnp.ones((), bool)
    valid = jnp.broadcast_to(valid, flux.shape)
    weight = valid.astype(flux.dtype)
    flux = jnp.where(valid, flux, 0)
    count = weight.sum(-1, keepdims=True)
    mean = flux.sum(-1, keepdims=True) / jnp.maximum(count, 1)
    deviation = (flux - mean) * weight
    variance = (deviation**2).sum(-1, keepdims=True) / jnp.maximum(count - 1, 1)
    contrast = variance > (MIN_CONTRAST * mean) ** 2
    # The inner where keeps the gradient of sqrt finite at zero.
    std = jnp.where(contrast, jnp.sqrt(jnp.where(contrast, variance, 1)), 1)
    return jnp.where(contrast, deviation / std, 0), mean, std


def tokenise(flux: jax.Array, config: SpecFormerConfig, valid: jax.Array | None = None) -> jax.Array:
    """Cut spectra (..., p) on the model grid into tokens (..., num_tokens, token_dim).

    Row 0 holds the statistics of the spectrum (log10 of the standard deviation for LAMOST) in its first
    columns and zeros; row 1 + w holds zeros there and window w of the standardised flux behind them, or with
    config.flux_scale of (flux - 1)/flux_scale. `valid` (..., p) is True where the flux may be used; the
    others are 0, see `standardise`.
    """
    chex.assert_axis_dimension(flux, -1, config.num_pixels)
    x, mean, std = standardise(flux, valid)
    values = {"mean": mean, "std": std, "log10_std": jnp.log10(std)}
    head = jnp.concatenate([values[name] for name in config.statistics], -1)  # (..., s)
    if config.flux_scale is not None:
        x = (flux - 1) / config.flux_scale
        x = x if valid is None else jnp.where(valid, x, 0)
    windows = x[..., _window_indices(config)]  # (..., p) -> (..., windows, window)
    lead = [(0, 0)] * (flux.ndim - 1)
    windows = jnp.pad(windows, [*lead, (1, 0), (len(config.statistics), 0)])  # -> (..., tokens, s + window)
    return windows.at[..., 0, : len(config.statistics)].set(head)


def detokenise(tokens: jax.Array, config: SpecFormerConfig) -> jax.Array:
    """Join tokens (..., num_tokens, token_dim) to standardised flux (..., p), the mean where windows overlap.

    Pixels that no window covers (the last two of LAMOST) take the value of the nearest one that has it.
    """
    windows = tokens[..., 1:, len(config.statistics) :]
    indices = _window_indices(config)
    count = np.bincount(indices.ravel(), minlength=config.num_pixels)
    total = jnp.zeros((*tokens.shape[:-2], config.num_pixels), tokens.dtype).at[..., indices].add(windows)
    nearest = np.minimum(np.arange(config.num_pixels), indices.max())
    return total[..., nearest] / count[nearest]


def _window_indices(config: SpecFormerConfig) -> np.ndarray:
    starts = config.stride * np.arange(config.num_windows)
    return starts[:, None] + np.arange(config.window)  # (windows, window)
