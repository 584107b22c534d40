"""Where arrays live: rows and seeds spread over devices, the parameters copied to each, batches that fit.

Everything is one named axis over devices, `AXIS`: a program compiled for arguments so placed runs on all of
them (`jax.jit` parts it), whether they belong to one process or, under `jax.distributed`, to several. Callers
need not place anything: `train.loop.fit` spreads its seeds, `pretrain.loop.run_stage` the rows of its
batches, both over the devices of all processes, and `foundation.inference` its rows over those of its own.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from specjax.config import ModelConfig
from specjax.typing import AnyArray

AXIS = "batch"
ROWS = 64  # spectra at a time on a device that does not say how much memory it has, such as a CPU
MOST_ROWS = 1024  # beyond it a matrix product gains nothing
NEAR_BYTES = 64 * 2**20  # of a block's activations, beyond which a CPU waits for its memory while it trains
SHARE = 0.25  # of a device's memory that the activations of one batch may take
UNKNOWN_MEMORY = 4 * 2**30  # bytes, where neither the device nor the system says


def mesh_for(count: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis over as many devices (by default all, of all processes) as divide `count`.

    Under `jax.distributed` it is all of them or, where that does not divide, the first one of each process or
    the very first only, so that a mesh never leaves out part of the processes by chance.
    """
    found = list(jax.devices() if devices is None else devices)
    processes = sorted({device.process_index for device in found})
    if len(processes) == 1:
        return Mesh(np.array(found[: largest_divisor(count, len(found))]), (AXIS,))
    firsts = [next(d for d in found if d.process_index == process) for process in processes]
    chosen = next(each for each in (found, firsts, firsts[:1]) if count % len(each) == 0)
    return Mesh(np.array(chosen), (AXIS,))


def largest_divisor(count: int, limit: int) -> int:
    """Return the largest number up to `limit` that divides `count`."""
    return next(size for size in range(min(count, limit), 0, -1) if count % size == 0)


def spread(tree: Any, mesh: Mesh) -> Any:
    """Part the leading axis of every leaf, which the mesh must divide, over its devices."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def copied(tree: Any, mesh: Mesh) -> Any:
    """Put every leaf as a whole on each device of the mesh."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec()))


def gathered(tree: Any) -> Any:
    """Return NumPy arrays of the whole leaves, in every process of the mesh that they are on."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _placed_in_parts(leaf, sharding), tree)


def _placed_in_parts(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Place a leaf that every process holds as a whole: each puts the parts of its own devices."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _placed_in_parts(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def rows_that_fit(config: ModelConfig, bytes_each: int = 4, device: jax.Device | None = None) -> int:
    """Return how many spectra to send through the towers at once on a device: a power of two from 8.

    `bytes_each` is the size of a number of the activations. A forward pass keeps the residual stream, the
    inputs and outputs of one layer, and the attention weights of one block, and nothing of earlier blocks.
    """
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    if "bytes_limit" not in stats:
        return ROWS
    fitting = SHARE * stats["bytes_limit"] / activation_bytes(config, bytes_each)
    return int(min(max(2 ** int(np.log2(max(fitting, 1))), 8), MOST_ROWS))


def rows_to_train(
    config: ModelConfig, batch: int, seeds: int, bytes_each: int = 4, device: jax.Device | None = None
) -> int:
    """Return how many rows of each seed to train the LAMOST tower on at once, out of a batch of `batch`.

    As many as fit, in equal parts of the batch, and at least one. A CPU takes fewer: see NEAR_BYTES.
    """
    fitting = SHARE * memory_bytes(device) / (seeds * training_bytes(config, bytes_each))
    if not (device or jax.local_devices()[0]).memory_stats():  # a CPU
        fitting = min(fitting, NEAR_BYTES / (seeds * activation_bytes(config, bytes_each)))
    return largest_divisor(batch, max(int(fitting), 1))


def memory_bytes(device: jax.Device | None = None) -> int:
    """Return the memory of a device: what it says itself, or else that of the machine."""
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return UNKNOWN_MEMORY


def training_bytes(config: ModelConfig, bytes_each: int = 4) -> int:
    """Return the bytes that one spectrum takes while the LAMOST tower trains, at most.

    All blocks keep their activations for the way back, where one block's gradients stand beside them.
    """
    return (config.specformer.num_layers + 2) * activation_bytes(config, bytes_each)


def activation_bytes(config: ModelConfig, bytes_each: int = 4) -> int:
    """Return the bytes that one spectrum takes inside the LAMOST tower, at most."""
    tower = config.specformer
    residual = 2 * 4 * tower.dim  # float32, before and after
    layer = bytes_each * (5 * tower.dim + 2 * tower.mlp_dim)  # norm, q, k, v, mixed; before and after GELU
    weights = (4 + bytes_each) * tower.num_heads * tower.num_tokens
    return tower.num_tokens * (residual + layer + weights)


def padded_rows(array: AnyArray, size: int) -> AnyArray:
    """Return the array (n, ...) with rows of zeros up to `size`."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
