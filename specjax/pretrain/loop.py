"""One stage of pretraining: a jitted, scanned loop in chunks, with progress, validation and resuming.

Where there are several devices, of this process or of all under `jax.distributed`, each has a copy of the
parameters and takes its share of the rows of every batch (`batches.rows_apart`).
"""

import contextlib
import dataclasses
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
from specjax.typing import Tree

# (params, batch_stats, data, key) -> loss, (batch_stats, metrics)
StageLoss = Callable[[Tree, Tree, Tree, jax.Array], tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Length and optimizer of a stage: AdamW with linear warm-up and cosine decay to zero."""

    steps: int
    batch: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    chunk: int = 100  # steps between two reports, validations and saved states

    def optimizer(self) -> optax.GradientTransformation:
        """Make the optimizer of the stage."""
        warmup = max(1, round(self.warmup * self.steps))
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, max(self.steps, warmup + 1)
        )
        adamw = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


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
    validate: Callable[[Tree, Tree], dict[str, float]] | None = None,
    say: Callable[[str], None] = print,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Tree, Tree]:
    """Train params from where `folder` left off, or from the start.

    Args:
        name: of the stage, for the report and for the folder of its states.
        loss: the objective; its batch comes out of `data` by `key`, which is fold_in(key, step).
        params, batch_stats: starting state; it stays the caller's.
        data: arrays that the loss reads.
        folder: where training states are kept; None keeps none. Processes that share the work share it.
        validate: scores of (params, batch_stats) on held-out stars, put into the report.
        say: receives one line a chunk.
        devices: that share the batches, as many of them as divide one; all of all processes by default.

    Returns:
        The trained (params, batch_stats), on one device.
    """
    optimizer = config.optimizer()
    state = {"params": params, "batch_stats": batch_stats, "optimizer": optimizer.init(params)}
    start = 0
    if folder is not None and latest_step(folder / name) is not None:
        state, start = restore_training_state(folder / name, state)
        say(f"{name}: resuming after step {start}")
    mesh = mesh_for(config.batch, devices)
    state = jax.tree.map(jnp.copy, state)  # every chunk gives its state away to the next
    if mesh.size > 1:
        state, data = replicate((state, data), mesh)
    advance = chunk_program(loss, optimizer, key, mesh)
    began = time.monotonic()
    for first in range(start, config.steps, config.chunk):
        last = min(first + config.chunk, config.steps)
        with on_mesh(mesh):
            state, metrics = advance(state, data, np.arange(first, last))
        scores = {key: float(value) for key, value in metrics.items()}
        here = on_one_device(state)
        if validate is not None:
            scores |= validate(here["params"], here["batch_stats"])
        if folder is not None:
            save_training_state(folder / name, _to_save(here), last)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in scores.items())
        say(f"{name} {last}/{config.steps}  {time.monotonic() - began:.0f} s  {shown}")
    here = on_one_device(state)
    return here["params"], here["batch_stats"]


def chunk_program(
    loss: StageLoss, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> Any:
    """Jit a chunk of steps: (state, data, indices of the steps) -> the next state, mean metrics.

    The state is donated: its successor takes its place in memory. With several devices it is traced and run
    inside `on_mesh`.
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
    """Set the mesh that `batches.rows_apart` looks for, unless it is of one device."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def on_one_device(tree: Tree) -> Tree:
    """Return the first of the copies of every leaf that this process holds, without moving anything."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _to_save(state: Tree) -> Tree:
    """One process writes for all, and knows that by arrays on the host."""
    return jax.tree.map(np.asarray, state) if jax.process_count() > 1 else state
