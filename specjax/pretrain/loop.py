"""The training loop of a pretraining stage: a jitted scan over chunks of steps, which can be resumed.

With several devices, of this process or of all processes under `jax.distributed`, each has a copy of the
parameters and computes its share of the rows of every batch (`batches.shard_batch`).
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from specjax.checkpoints import latest_step, restore_training_state, save_training_state
from specjax.devices import mesh_for, replicate
from specjax.pretrain.config import StageConfig
from specjax.progress import Say, silent
from specjax.typing import Tree

StageAux = tuple[Tree, dict[str, jax.Array]]
"""The new batch statistics and the metrics to report."""

StageLoss = Callable[[Any, Tree, Tree, jax.Array], tuple[jax.Array, StageAux]]
"""(params, batch_stats, data, key) -> loss, (batch_stats, metrics)"""


def run_stage(
    name: str,
    loss: StageLoss,
    config: StageConfig,
    *,
    params: Tree,
    batch_stats: Tree,
    data: Tree,
    key: jax.Array,
    folder: Path | None = None,
    validate: Callable[[Any, Tree], dict[str, float]] | None = None,
    say: Say = silent,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Any, Tree]:
    """Train parameters from the last saved state in `folder`, or from the start.

    Args:
        name: of the stage, for the report and for the folder of its states.
        loss: the objective; it draws its batch from `data` with the key fold_in(key, step).
        config: length and optimizer.
        params: starting parameters; neither they nor `batch_stats` are modified.
        batch_stats: starting batch statistics.
        data: arrays that the loss reads.
        key: random key of the stage.
        folder: where training states are kept; None keeps none. Processes that share the work share it.
        validate: (params, batch_stats) -> scores, for the report.
        say: takes one line of progress per chunk.
        devices: devices that may share the batches; as many of them as divide a batch are used. The default
            is all devices of all processes.

    Returns:
        The trained params and batch_stats, on one device.
    """
    optimizer = config.optimizer()
    state = {"params": params, "batch_stats": batch_stats, "optimizer": optimizer.init(params)}
    states = None if folder is None else folder / name
    start = 0
    if states is not None and latest_step(states) is not None:
        state, start = restore_training_state(states, state)
        say(f"{name}: resuming after step {start}")
    mesh = mesh_for(config.batch, devices)
    state = jax.tree.map(jnp.copy, state)  # each chunk donates its state to the next one
    if mesh.size > 1:
        state, data = replicate((state, data), mesh)
    advance = chunk_program(loss, optimizer, key, mesh)
    began = time.monotonic()
    for first in range(start, config.steps, config.chunk):
        last = min(first + config.chunk, config.steps)
        with on_mesh(mesh):
            state, metrics = advance(state, data, np.arange(first, last))
        local = on_one_device(state)
        scores = {metric: float(value) for metric, value in metrics.items()}
        if validate is not None:
            scores |= validate(local["params"], local["batch_stats"])
        if states is not None:
            save_training_state(states, _to_save(local), last)
        report = "  ".join(f"{score} {value:.4g}" for score, value in scores.items())
        say(f"{name} {last}/{config.steps}  {time.monotonic() - began:.0f} s  {report}")
    local = on_one_device(state)
    return local["params"], local["batch_stats"]


def chunk_program(
    loss: StageLoss, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> Any:
    """Compile a chunk of steps: (state, data, indices of the steps) -> new state, mean metrics.

    The state is donated: the new one reuses its memory. With several devices, call the program inside
    `on_mesh`.
    """

    def advance(state: Tree, data: Tree, indices: jax.Array) -> tuple[Tree, dict[str, jax.Array]]:
        def step(state: Tree, index: jax.Array) -> tuple[Tree, dict[str, jax.Array]]:
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, (stats, metrics)), grads = gradient(
                state["params"], state["batch_stats"], data, jax.random.fold_in(key, index)
            )
            updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
            params = optax.apply_updates(state["params"], updates)
            state = {"params": params, "batch_stats": stats, "optimizer": optimizer_state}
            return state, {"loss": value, **metrics}

        state, metrics = jax.lax.scan(step, state, indices)
        return state, jax.tree.map(jnp.mean, metrics)

    whole = NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else None
    return jax.jit(advance, donate_argnums=0, out_shardings=whole)


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Make the mesh current for `batches.shard_batch`, unless it has one device only."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def on_one_device(tree: Tree) -> Tree:
    """Return this process's first copy of every leaf, without a transfer."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _to_save(state: Tree) -> Tree:
    """Move the state to the host if there are several processes: Orbax then lets one of them write."""
    return jax.tree.map(np.asarray, state) if jax.process_count() > 1 else state
