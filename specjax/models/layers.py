"""Building blocks of all models: the dense layer with an optional LoRA term, the MLP, GELU and norms.

The arithmetic follows the published PyTorch modules: exact (erf) GELU, LayerNorm and BatchNorm with eps 1e-5.

The `dtype` of a module is the type of its matrix products and of its output; parameters, means, variances and
the arguments of exponentials and erf stay float32. With None a module computes in the type of its input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from specjax.config import LoRAConfig
from specjax.lora import init_lora_a
from specjax.models import products
from specjax.typing import Tree

EPSILON = 1e-5  # the default of torch.nn.LayerNorm and torch.nn.BatchNorm1d


class Leaves(NamedTuple):
    """The parameters of a dense layer; the low-rank factors are None if there are none."""

    kernel: jax.Array
    bias: jax.Array
    down: jax.Array | None
    up: jax.Array | None


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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x (..., in) to (..., features)."""
        return dense(x, self)[0]

    @nn.compact
    def leaves(self, x: jax.Array) -> Leaves:
        """Return the parameters for the input x (..., in)."""
        inputs = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.lora is None or not (self.is_initializing() or self.has_variable("params", "lora_a")):
            return Leaves(kernel, bias, None, None)
        if self.is_initializing():
            down = self.param("lora_a", init_lora_a, (inputs, self.lora.rank))
            up = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features))
        else:
            down, up = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
        return Leaves(kernel, bias, down, up)


def dense(x: jax.Array, *layers: LoRADense, cuts: Sequence[int] = ()) -> list[jax.Array]:
    """Map x (..., in) through dense layers of one `lora` and one `dtype`.

    Args:
        x: their common input.
        *layers: the layers.
        cuts: number of equal parts of the output of each layer, by default 1. The kernels are cut, not the
            outputs, which would have to be copied.

    Returns:
        All parts of the first layer, then those of the next: (..., features/parts).
    """
    cuts, (first, *_) = cuts or (1,) * len(layers), layers
    x, every = promote((x, [layer.leaves(x) for layer in layers]), first.dtype)
    outputs = [
        [
            products.matmul(x, kernel) + bias
            for kernel, bias in zip(_cut(one.kernel, parts), _cut(one.bias, parts), strict=True)
        ]
        for one, parts in zip(every, cuts, strict=True)
    ]
    adapted = [index for index, one in enumerate(every) if one.down is not None]
    if adapted and first.lora is not None:
        downs = [every[index].down for index in adapted]
        ups = [_cut(every[index].up, cuts[index]) for index in adapted]
        for index, added in zip(adapted, products.low_rank(x, downs, ups, first.lora.scale), strict=True):
            outputs[index] = [y + update for y, update in zip(outputs[index], added, strict=True)]
    return [part for parts in outputs for part in parts]


def promote(tree: Tree, dtype: DTypeLike | None) -> Tree:
    """Bring all arrays of a tree to one type: `dtype`, or by default the one that they promote to."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, nn.dtypes.promote_dtype(*leaves, dtype=dtype))


def _cut(array: jax.Array, parts: int) -> list[jax.Array]:
    return jnp.split(array, parts, axis=-1)


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
