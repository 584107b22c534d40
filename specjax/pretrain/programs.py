"""The compiled programs of a pretraining stage: its steps, on one device or many, and its evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from specjax.errors import ConfigError
from specjax.pretrain.accumulate import accumulated
from specjax.train.sharding import ROWS, on_mesh, parameter_shardings, place
from specjax.typing import Tree

StageAux = tuple[Tree, dict[str, jax.Array]]
"""The new batch statistics and the metrics to report."""

StageLoss = Callable[[Any, Tree, Tree, jax.Array], tuple[jax.Array, StageAux]]
"""(params, batch_stats, data, key) -> loss, (batch_stats, metrics)"""

Evaluation = Callable[[Any, Tree, Tree, jax.Array], dict[str, jax.Array]]
"""(params, batch_stats, data, key) -> scores; the held-out batch is data["batch"]"""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How a stage runs.

    Attributes:
        accumulate: parts of a batch whose gradients are computed one after the other.
        ema: decay of the average of the parameters over the steps, which is then the result; 0 for none.
        fsdp: devices among which parameters and optimizer state are divided, see `train.sharding`.
        save_every: steps between saved states, rounded up to reports; None saves at every report.
        resume: how to continue after SIGTERM, in words for the user.
        log: folder of the metrics and curves; None writes none.
        peak: FLOP/s that a device can reach, to report the share that is used.
        tensorboard: write the scores for TensorBoard, too.

    Raises:
        ConfigError: a number out of range.
    """

    accumulate: int = 1
    ema: float = 0.0
    fsdp: int = 1
    save_every: int | None = None
    resume: str = "run it again to continue"
    log: Path | None = None
    peak: float | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1 or not 0 <= self.ema < 1:
            raise ConfigError(
                f"accumulate must be at least 1 and ema in [0, 1), not {self.accumulate} and {self.ema}"
            )


DEFAULTS = LoopOptions()


def initial_state(
    params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation, options: LoopOptions
) -> Tree:
    """Return the state before the first step."""
    state = {"params": params, "batch_stats": batch_stats, "optimizer": optimizer.init(params)}
    return {**state, "ema": params} if options.ema else state


def chunk_program(
    loss: StageLoss,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    options: LoopOptions = DEFAULTS,
    shardings: Tree | None = None,
) -> Any:
    """Compile steps: (state, data, indices of the steps, batch or None) -> new state, metrics.

    Without a batch the steps are a scan, and the metrics their means; with one there is one step. The state
    is donated: the new one reuses its memory. With several devices, call the program inside `on_mesh`.
    """

    def step(state: Tree, index: jax.Array, data: Tree) -> tuple[Tree, dict[str, jax.Array]]:
        gradient = accumulated(loss, options.accumulate)
        (value, (stats, metrics)), grads = gradient(
            state["params"], state["batch_stats"], data, jax.random.fold_in(key, index)
        )
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "batch_stats": stats, "optimizer": optimizer_state}
        if options.ema:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - options.ema)
        metrics = {"loss": value, **metrics}
        return new, metrics | ({"gradient norm": optax.tree.norm(grads)} if "batch" in data else {})

    def advance(
        state: Tree, data: Tree, indices: jax.Array, batch: Tree | None = None
    ) -> tuple[Tree, dict[str, jax.Array]]:
        if batch is not None:
            return step(state, indices[0], {**data, "batch": batch})
        state, metrics = jax.lax.scan(lambda state, index: step(state, index, data), state, indices)
        return state, jax.tree.map(jnp.mean, metrics)

    whole = NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else None
    placement = None if whole is None else (whole if shardings is None else shardings, whole)
    return jax.jit(advance, donate_argnums=0, out_shardings=placement)


def placed_data(data: Tree, mesh: Mesh, divided: bool) -> Tree:
    """Place constant arrays on a mesh: divided as parameters are, or a whole copy on every device."""
    if mesh.size == 1:
        return data
    whole = NamedSharding(mesh, PartitionSpec())
    return place(data, parameter_shardings(data, mesh) if divided else jax.tree.map(lambda _: whole, data))


def evaluator(
    evaluation: Evaluation | None, held_out: Sequence[Tree], key: jax.Array, mesh: Mesh
) -> Callable[[Tree, Tree], dict[str, float]]:
    """Compile an evaluation: (params and batch_stats, data) -> its means over the held-out batches."""
    if evaluation is None or not held_out:
        return lambda variables, data: {}
    whole = NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else None
    program = jax.jit(evaluation, out_shardings=whole)
    batches = [_placed_held_out(batch, mesh) for batch in held_out]

    def evaluate(variables: Tree, data: Tree) -> dict[str, float]:
        with on_mesh(mesh):
            found = [program(*variables, {**data, "batch": batch}, key) for batch in batches]
        found = jax.device_get(found)
        return {f"held-out {name}": float(np.mean([one[name] for one in found])) for name in found[0]}

    return evaluate


def _placed_held_out(batch: Tree, mesh: Mesh) -> Tree:
    batch = {name: leaf for name, leaf in batch.items() if name != "row"}
    if mesh.size == 1:
        return jax.device_put(batch, mesh.devices.flat[0])
    fits = all(len(leaf) % mesh.size == 0 for leaf in batch.values())
    sharding = NamedSharding(mesh, ROWS if fits else PartitionSpec())
    return place(batch, jax.tree.map(lambda _: sharding, batch))
