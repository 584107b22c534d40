"""The compiled loop: one jitted program per stage, vmapped over seeds and scanned over steps.

A stage trains the leaves of some groups on top of a frozen tree. The frozen tree and the data that all seeds
share are not batched; factors, optimizer state, per-seed data and random numbers are. Nothing returns to the
host before the stage ends. The optimizer state is made and updated inside the program, so that no argument
could be donated; the initial factors remain the caller's.

On several devices, each trains its share of the seeds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from specjax.devices import AXIS, gather, replicate, shard
from specjax.typing import Tree

# (trainable tree of one seed, frozen tree, shared data, this seed's data, key) -> scalar
Loss = Callable[[Tree, Tree, Tree, Tree, jax.Array], jax.Array]


class Fit(NamedTuple):
    """The result of a stage: leaves of `snapshots` are (seeds, snapshots, ...), `loss` is (seeds, snapshots).

    Snapshot e is the state after (e + 1)/snapshots of the steps, and its loss the mean over the steps since
    the snapshot before.
    """

    snapshots: Tree
    loss: jax.Array


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    frozen: Tree,
    trainable: Tree,
    shared: Tree,
    per_seed: Tree,
    keys: jax.Array,
    steps: int,
    snapshots: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Fit:
    """Train S independent copies of `trainable` in one program.

    The program is compiled once for a `loss`, an `optimizer` (the same objects, so make them once) and the
    shapes of the data.

    Args:
        loss: the objective; gradients are taken with respect to its first argument only.
        optimizer: see `optimizer.make_optimizer`.
        frozen: parameters that are not trained, one copy for all seeds.
        trainable: initial factors, each leaf with a leading axis S.
        shared: data that all seeds read.
        per_seed: data of each seed (splits, indices, cached features), each leaf with a leading axis S.
        keys: (S,) keys of `jax.random.key`; step k of a seed uses fold_in(key, k), so that a seed inside the
            vmap trains as it does alone.
        steps: optimizer steps.
        snapshots: number of states to return, evenly spaced, the last one at the end.
        devices: devices that share the seeds, by default all of all processes. If their number does not
            divide that of the seeds, some train a copy of a seed, which is dropped. If the keys are on
            several devices already, all arguments are used as they are placed.

    Returns:
        The fit, on the devices that trained it; under `jax.distributed` on one device of each process, whole.

    Raises:
        ValueError: steps is not a multiple of snapshots.
        AssertionError: a leaf of `trainable` or `per_seed` does not have a leading axis S.
    """
    if steps < 1 or steps % snapshots:
        raise ValueError(f"{steps} steps cannot be cut into {snapshots} equal parts")
    chex.assert_tree_shape_prefix((trainable, per_seed), keys.shape)
    program = _program(loss, optimizer, steps, snapshots)
    chosen = list(jax.devices() if devices is None else devices)
    if len(chosen) == 1 or len(keys.sharding.device_set) > 1:
        return program(frozen, trainable, shared, per_seed, keys)
    mesh, seeds = Mesh(np.array(chosen), (AXIS,)), len(keys)
    rows = np.arange(seeds + -seeds % mesh.size) % seeds
    own = shard(jax.tree.map(lambda leaf: leaf[rows], (trainable, per_seed, keys)), mesh)
    result = program(replicate(frozen, mesh), own[0], replicate(shared, mesh), *own[1:])
    return _seeds_of(result, seeds, mesh)


def _seeds_of(result: Fit, seeds: int, mesh: Mesh) -> Fit:
    """Drop the copies of seeds; if processes share the mesh, give each the whole result."""
    if not mesh.is_multi_process:
        return result if len(result.loss) == seeds else Fit(*_first(result, seeds))
    return Fit(*jax.tree.map(jnp.asarray, _first(gather(result), seeds)))


def _first(result: Fit, seeds: int) -> Fit:
    return Fit(*jax.tree.map(lambda leaf: leaf[:seeds], tuple(result)))


@functools.lru_cache(maxsize=64)
def _program(
    loss: Loss, optimizer: optax.GradientTransformation, steps: int, snapshots: int
) -> Callable[..., Fit]:
    def one_seed(frozen: Tree, trainable: Tree, shared: Tree, own: Tree, key: jax.Array) -> Fit:
        def step(carry: tuple[Tree, Tree], index: jax.Array) -> tuple[tuple[Tree, Tree], jax.Array]:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(
                params, frozen, shared, own, jax.random.fold_in(key, index)
            )
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        def part(carry: tuple[Tree, Tree], indices: jax.Array) -> tuple[tuple[Tree, Tree], Any]:
            carry, values = jax.lax.scan(step, carry, indices)
            return carry, (carry[0], values.mean())

        indices = jnp.arange(steps).reshape(snapshots, -1)
        _, (states, values) = jax.lax.scan(part, (trainable, optimizer.init(trainable)), indices)
        return Fit(states, values)

    return jax.jit(jax.vmap(one_seed, in_axes=(None, 0, None, 0, 0)))
