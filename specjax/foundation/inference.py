"""Compiled inference: batches of a few fixed sizes through the networks, on all devices of the process.

Any number of spectra costs at most as many compilations of a program as there are batch sizes. Compiled
programs are shared by all models of one configuration, since parameters are arguments.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from specjax import devices
from specjax.batching import inference_batch_size, pad_rows
from specjax.config import ModelConfig
from specjax.foundation.networks import Networks, Variables, module_dtype
from specjax.models.apply import apply
from specjax.models.label_head import LabelHead
from specjax.models.projection import LamostProjection
from specjax.typing import AnyArray, BoolArray, Float32Array

FEW_ROWS = (8, 64)
"""Batch sizes for small numbers of spectra and for the remainder of a large number."""

NEUTRAL_STATS = {"feature_mean": 0.0, "feature_std": 1.0, "label_mean": 0.0, "label_std": 1.0}
"""Statistics of a label head that neither standardises its features nor scales its labels."""

Program = Callable[[Networks, jax.Array, jax.Array], Any]
"""A method of `Networks`."""


@dataclass(frozen=True)
class Placement:
    """A model's variables where programs read them: on one device, or a copy on each device of a mesh."""

    variables: Variables
    mesh: Mesh | None


def place(variables: Variables) -> Placement:
    """Put variables on all devices of this process."""
    if jax.local_device_count() == 1:
        return Placement(variables, None)
    mesh = Mesh(np.array(jax.local_devices()), (devices.AXIS,))
    return Placement(devices.replicate(variables, mesh), mesh)


def batch_sizes(config: ModelConfig, dtype: str, mesh: Mesh | None) -> tuple[int, ...]:
    """Return the ascending batch sizes that programs are compiled for, multiples of the number of devices."""
    count = 1 if mesh is None else mesh.size
    most = inference_batch_size(config, np.dtype(dtype).itemsize) * count
    few = (-(-rows // count) * count for rows in FEW_ROWS)
    return (*(rows for rows in few if rows < most), most)


def run(
    config: ModelConfig,
    program: Program,
    placed: Placement,
    flux: Float32Array,
    valid: BoolArray,
    dtype: str = "float32",
) -> Any:
    """Run a method of `Networks` on flux (n, pixels) with valid (n, pixels), in batches.

    The towers compute their matrix products in `dtype`; the result is float32, NumPy, with n rows in every
    leaf.
    """
    compiled = functools.partial(_run, config, program, dtype, placed.variables)
    return in_batches(compiled, batch_sizes(config, dtype, placed.mesh), flux, valid, mesh=placed.mesh)


def run_projection(
    config: ModelConfig, variables: Variables, mixed: Float32Array, dtype: str = "float32"
) -> Float32Array:
    """Map pooled tokens (n, dim), `BackboneFeatures.mixed`, to projected vectors z (n, dim), in batches."""
    result: Float32Array = in_batches(
        functools.partial(_projection, config, dtype, variables), FEW_ROWS, mixed
    )
    return result


def run_head(
    config: ModelConfig, variables: Variables, stats: Mapping[str, Any], features: Float32Array
) -> Float32Array:
    """Map features (n, d) to labels (n, num_labels) in physical units with a label head, in batches.

    `stats` has feature_mean, feature_std, label_mean and label_std; missing ones are 0 and 1, others ignored.
    """
    used = {name: stats.get(name, neutral) for name, neutral in NEUTRAL_STATS.items()}
    compiled = functools.partial(_head, config, variables, used)
    result: Float32Array = in_batches(compiled, FEW_ROWS, features)
    return result


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    config: ModelConfig,
    program: Program,
    dtype: str,
    variables: Variables,
    flux: jax.Array,
    valid: jax.Array,
) -> Any:
    return program(Networks(config, variables, module_dtype(dtype)), flux, valid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _projection(config: ModelConfig, dtype: str, variables: Variables, mixed: jax.Array) -> jax.Array:
    module = LamostProjection(config.projection, dtype=module_dtype(dtype))
    return apply(module, variables, mixed, method="project")


@functools.partial(jax.jit, static_argnums=0)
def _head(
    config: ModelConfig, variables: Variables, stats: Mapping[str, Any], features: jax.Array
) -> jax.Array:
    x = (features - stats["feature_mean"]) / stats["feature_std"]
    labels = apply(LabelHead(config.head), variables, x)
    return jnp.asarray(labels * stats["label_std"] + stats["label_mean"])


def next_size(left: int, sizes: tuple[int, ...]) -> int:
    """Return the size of the next batch, one of `sizes` (ascending), when `left` rows remain.

    It is the smallest size that holds them all, unless that batch would be at least half empty: then the next
    smaller size is used several times. Padding therefore never doubles the work, except below the smallest
    size.
    """
    fitting = next((size for size in sizes if left <= size), sizes[-1])
    below = [size for size in sizes if size < fitting]
    return below[-1] if below and 2 * left <= fitting else fitting


def in_batches(
    run: Callable[..., Any],
    sizes: tuple[int, ...],
    *arrays: AnyArray,
    mesh: Mesh | None = None,
    axis: int = 0,
) -> Any:
    """Apply a compiled program to rows in padded batches.

    Args:
        run: maps batches of the arrays to a pytree.
        sizes: ascending batch sizes.
        *arrays: (n, ...) inputs.
        mesh: devices over which the rows of a batch are spread.
        axis: the axis of the rows in the results.

    Returns:
        The results for all n rows, as NumPy arrays.
    """
    total, start = len(arrays[0]), 0
    pending: list[Any] = []
    parts: list[Any] = []
    while start < total:
        size = next_size(total - start, sizes)
        batch = [pad_rows(array[start : start + size], size) for array in arrays]
        pending.append(run(*(batch if mesh is None else devices.shard(batch, mesh))))
        start += size
        if len(pending) == 2:  # the device computes one batch while the one before is copied back
            parts.append(jax.device_get(pending.pop(0)))
    rows = (*(slice(None),) * axis, slice(total))
    return jax.tree.map(lambda *each: np.concatenate(each, axis=axis)[rows], *parts, *jax.device_get(pending))
