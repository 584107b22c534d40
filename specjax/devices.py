"""Placement of arrays on devices: leading axes are sharded over a mesh, parameters replicated.

All meshes have one named axis, `AXIS`. `jax.jit` partitions a program whose arguments are placed this way
over all devices of the mesh, whether they belong to one process or, under `jax.distributed`, to several.
Callers need not place anything: `train.loop.fit` shards its seeds and `pretrain.loop.run_stage` the rows of
its batches, both over the devices of all processes; `foundation.inference` shards its rows over the devices
of its own process.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from specjax.typing import Tree

AXIS = "batch"

BFLOAT16_CAPABILITY = (8, 0)
"""Compute capability from which the matrix units of an NVIDIA GPU take bfloat16."""


def has_bfloat16_units(device: jax.Device | None = None) -> bool:
    """Say whether a device, by default the first one of this process, is fast in bfloat16.

    That holds for TPUs, and for NVIDIA GPUs of compute capability 8.0 (A100, RTX 30) or newer. Older ones and
    CPUs emulate it, and on other GPUs it is not known.
    """
    device = jax.local_devices()[0] if device is None else device
    if device.platform == "tpu":
        return True
    # Other GPUs have no such attribute, or one that is not of the form "9.0", such as "gfx90a".
    capability = str(getattr(device, "compute_capability", "")).split(".")
    known = len(capability) == 2 and all(map(str.isdecimal, capability))
    return known and tuple(map(int, capability)) >= BFLOAT16_CAPABILITY


def mesh_for(count: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis over the largest number of devices that divides `count`.

    By default it is chosen from the devices of all processes. With several processes the mesh contains all
    devices, the first one of each process or only the very first one, so that never just some of the
    processes are left out.
    """
    found = list(jax.devices() if devices is None else devices)
    processes = sorted({device.process_index for device in found})
    if len(processes) == 1:
        return Mesh(np.array(found[: largest_divisor(count, len(found))]), (AXIS,))
    firsts = [next(d for d in found if d.process_index == process) for process in processes]
    chosen = next(each for each in (found, firsts, firsts[:1]) if count % len(each) == 0)
    return Mesh(np.array(chosen), (AXIS,))


def largest_divisor(count: int, limit: int) -> int:
    """Return the largest divisor of `count` that does not exceed `limit`."""
    return next(size for size in range(min(count, limit), 0, -1) if count % size == 0)


def shard(tree: Tree, mesh: Mesh) -> Tree:
    """Split the leading axis of every leaf over the devices of a mesh, whose size must divide its length."""
    return _place(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Put a whole copy of every leaf on each device of a mesh."""
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def gather(tree: Tree) -> Tree:
    """Return whole leaves as NumPy arrays, in every process whose devices hold a part of them."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def _place(tree: Tree, sharding: NamedSharding) -> Tree:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: place_leaf(leaf, sharding), tree)


def place_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Place an array that every process holds as a whole; each process fills its own devices."""
    if sharding.is_fully_addressable:
        placed: jax.Array = jax.device_put(leaf, sharding)
        return placed
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = place_leaf(jax.random.key_data(leaf), sharding)
        key: jax.Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return key
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
