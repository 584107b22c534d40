"""Training over a mesh of devices with the named axes `data` and `fsdp`.

The rows of a batch are divided among all devices. Parameters, their averages and the optimizer's moments are
divided along `fsdp` and copied along `data`: with `fsdp` 1 every device has a whole copy. `jax.jit` inserts
the communication, so that a program means the same on any mesh.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from specjax.devices import mesh_for, place_leaf
from specjax.errors import ConfigError
from specjax.typing import Tree

DATA, FSDP = "data", "fsdp"
ROWS = PartitionSpec((DATA, FSDP))


def training_mesh(rows: int, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh (data, fsdp) over as many devices as divide a batch of `rows` rows, see `mesh_for`.

    Raises:
        ConfigError: their number is not a multiple of `fsdp`.
    """
    found = mesh_for(rows, devices).devices
    if fsdp < 1 or found.size % fsdp:
        raise ConfigError(f"fsdp {fsdp} does not divide {found.size}, the devices that share {rows} rows")
    return Mesh(found.reshape(-1, fsdp), (DATA, FSDP))


def parameter_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Return the placement of every leaf: its longest axis that `fsdp` divides is divided along it."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(np.shape(leaf), mesh.shape[FSDP])), tree)


def _spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    fitting = [axis for axis, length in enumerate(shape) if length % fsdp == 0 and length >= fsdp]
    if fsdp == 1 or not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP if axis == longest else None for axis in range(longest + 1)))


def place(tree: Tree, shardings: Tree) -> Tree:
    """Place leaves that every process holds as a whole."""
    return jax.tree.map(place_leaf, tree, shardings)


def place_rows(batch: Tree, mesh: Mesh) -> Tree:
    """Place this process's rows of a batch, leaves (n, ...), as its part of the batch of all processes."""
    if mesh.size == 1:
        return jax.device_put(batch, mesh.devices.flat[0])
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def gathered(tree: Tree, mesh: Mesh) -> Tree:
    """Return a whole copy of every leaf on the first device of this process."""
    if mesh.size > 1 and not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        whole = NamedSharding(mesh, PartitionSpec())
        tree = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Make the mesh current for `shard_rows`, unless it has one device only."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def shard_rows(batch: Tree) -> Tree:
    """Distribute the rows of a batch, leaves (n, ...), over the devices of the current mesh, if there is one.

    For use inside a compiled program. Random numbers do not depend on the mesh: the batch is the same on any
    number of devices.
    """
    axes = jax.sharding.get_abstract_mesh().axis_names
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(axes)) if axes else batch
