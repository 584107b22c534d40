"""The training loop of a pretraining stage, which can be interrupted and resumed.

There are two kinds of input. A loss may draw its batches itself from arrays on the device, in a compiled scan
over chunks of steps; or a feed gives it one batch per step, from files on disk (`stream.Stream`). All else is
the same: the optimizer, the mesh of devices (`train.sharding`), the saved states and the reports.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from specjax import distributed
from specjax.checkpoints import TrainingStates
from specjax.errors import ConfigError, TrainingError
from specjax.interrupt import Terminated, Termination, deferred_termination
from specjax.pretrain.config import StageConfig
from specjax.pretrain.monitor import Monitor
from specjax.pretrain.programs import (
    DEFAULTS,
    Evaluation,
    LoopOptions,
    StageLoss,
    chunk_program,
    evaluator,
    initial_state,
    placed_data,
)
from specjax.progress import Say, silent
from specjax.train.sharding import (
    gathered,
    on_mesh,
    parameter_shardings,
    place,
    place_rows,
    training_mesh,
)
from specjax.train.speed import program_flops
from specjax.typing import AnyArray, IntArray, Tree

AHEAD = 2  # steps whose batches may wait on the devices


class Feed(Protocol):
    """Batches for a stage, such as a `stream.Stream`."""

    def __next__(self) -> dict[str, AnyArray]:
        """Return this process's rows of the next batch; "row" has their numbers."""

    def state(self) -> dict[str, Any]:
        """Return the position after the last batch, in plain numbers."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a position that `state` returned."""

    def ids(self, rows: IntArray) -> list[str]:
        """Return the ids of rows, by their numbers."""


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
    feed: Feed | None = None,
    evaluation: Evaluation | None = None,
    held_out: Sequence[Tree] = (),
    options: LoopOptions = DEFAULTS,
) -> tuple[Any, Tree]:
    """Train parameters from the last saved state in `folder`, or from the start.

    Args:
        name: of the stage, for the report and for the folder of its states.
        loss: the objective. Without a feed it draws its batch from `data` with the key fold_in(key, step);
            with a feed the batch is data["batch"].
        config: length and optimizer.
        params: starting parameters; neither they nor `batch_stats` are modified.
        batch_stats: starting batch statistics.
        data: arrays that the loss reads; with a feed they are divided among devices as parameters are.
        key: random key of the stage.
        folder: where training states are kept; None keeps none. Processes that share the work share it.
        validate: (params, batch_stats) -> scores, for the report.
        say: takes one line of progress per report.
        devices: devices that may share the batches; as many of them as divide a batch are used. The default
            is all devices of all processes.
        feed: the batches; None if the loss draws them itself.
        evaluation: scores on the batches `held_out`, reported as their mean with the prefix "held-out".
        held_out: batches that every process has as a whole.
        options: how it runs.

    Returns:
        The trained params and batch_stats, on one device.

    Raises:
        TrainingError: the loss is not finite.
        Terminated: the process received SIGTERM; the state is saved.
        ConfigError: a batch that the options do not divide.
    """
    mesh = stage_mesh(config, options, devices)
    with _ending_together(), contextlib.ExitStack() as stack:
        states = None if folder is None else stack.enter_context(TrainingStates(folder / name))
        stage = _Stage(
            name=name,
            loss=loss,
            config=config,
            options=options,
            mesh=mesh,
            key=key,
            data=placed_data(data, mesh, divided=feed is not None),
            feed=feed,
            states=states,
            monitor=stack.enter_context(_monitor(name, config, options, mesh, say)),
            termination=stack.enter_context(deferred_termination()),
            validate=validate,
            evaluate=evaluator(evaluation, held_out, key, mesh),
        )
        state = stage.run(params, batch_stats, say)
    return gathered((state.get("ema", state["params"]), state["batch_stats"]), mesh)  # type: ignore[no-any-return]


def _monitor(
    name: str, config: StageConfig, options: LoopOptions, mesh: Mesh, say: Say
) -> contextlib.AbstractContextManager[Monitor]:
    """Make the monitor of a stage, which writes files in process 0 only."""
    monitor = Monitor(
        name,
        config.steps,
        config.batch,
        say,
        options.log if jax.process_index() == 0 else None,
        peak=options.peak and options.peak * mesh.size,
        tensorboard=options.tensorboard,
    )
    return contextlib.closing(monitor)


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """End a distributed session in order if all processes end at the same step: none of them has failed."""
    try:
        yield
    except Terminated:
        distributed.finish()
        raise


def stage_mesh(
    config: StageConfig, options: LoopOptions, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return the devices that share the batches of a stage.

    Raises:
        ConfigError: a batch that devices and options do not divide.
    """
    mesh = training_mesh(config.batch, options.fsdp, devices)
    if config.batch % (options.accumulate * mesh.size):
        raise ConfigError(
            f"a batch of {config.batch} cannot be divided by accumulate {options.accumulate}"
            f" and {mesh.size} devices"
        )
    return mesh


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A stage while it runs; the attributes are arguments of `run_stage`, placed and opened."""

    name: str
    loss: StageLoss
    config: StageConfig
    options: LoopOptions
    mesh: Mesh
    key: jax.Array
    data: Tree
    feed: Feed | None
    states: TrainingStates | None
    monitor: Monitor
    termination: Termination
    validate: Callable[[Any, Tree], dict[str, float]] | None
    evaluate: Callable[[Tree, Tree], dict[str, float]]
    _rows: dict[int, IntArray] = field(default_factory=dict)

    def run(self, params: Tree, batch_stats: Tree, say: Say) -> Tree:
        """Run the remaining steps and return the last state."""
        config, optimizer = self.config, self.config.optimizer()
        state = initial_state(params, batch_stats, optimizer, self.options)
        shardings = parameter_shardings(state, self.mesh) if self.mesh.size > 1 else None
        state, start = self._restored(state if shardings is None else place(state, shardings))
        if start:
            say(f"{self.name}: resuming after step {start}")
        self.monitor.begin(start)
        state = jax.tree.map(jnp.copy, state)  # each program donates its state to the next one
        program = chunk_program(self.loss, optimizer, self.key, self.mesh, self.options, shardings)
        saved = start
        while start < config.steps:
            last = min((start // config.chunk + 1) * config.chunk, config.steps)
            state, metrics, last = self._advance(program, state, start, last)
            scores = self._checked(metrics, start, last, saved)
            ends = self._must_end()
            scores |= {} if ends else self._scores(state)
            if self._is_due(start, last) or ends:
                self._save(state, last)
                saved = last
            start = last
            self.monitor.report(last, scores)
            if ends:
                self._end(last)
        self.monitor.draw()
        return state

    def _restored(self, state: Tree) -> tuple[Tree, int]:
        if self.states is None or self.states.latest_step() is None:
            return state, 0
        found = self.states.restore(state)
        if self.feed is not None:
            self.feed.restore(found.position)
        return found.state, found.step

    def _advance(
        self, program: Any, state: Tree, first: int, last: int
    ) -> tuple[Tree, dict[str, AnyArray], int]:
        """Run steps; return the state, the metrics of each step or their mean, and the step reached."""
        if self.feed is None:
            with on_mesh(self.mesh):
                state, metrics = program(state, self.data, np.arange(first, last))
            return state, {name: np.asarray(value)[None] for name, value in metrics.items()}, last
        made: list[dict[str, jax.Array]] = []
        self._rows.clear()
        for step in range(first, last):
            batch = next(self.feed)
            self._rows[step] = batch.pop("row")
            with on_mesh(self.mesh):
                arguments = state, self.data, np.array([step]), place_rows(batch, self.mesh)
                if self.monitor.flops is None and self.options.peak:
                    self.monitor.flops = program_flops(program, *arguments)
                state, metrics = program(*arguments)
            made.append(metrics)
            if len(made) > AHEAD:
                made[-1 - AHEAD]["loss"].block_until_ready()
            if self.termination.requested and jax.process_count() == 1:
                break
        host = jax.device_get(made)
        return state, {name: np.stack([one[name] for one in host]) for name in host[0]}, first + len(made)

    def _checked(self, metrics: dict[str, AnyArray], first: int, last: int, saved: int) -> dict[str, float]:
        """Return the mean of each metric.

        Raises:
            TrainingError: the loss or the gradient of a step is not finite.
        """
        bad = ~np.isfinite(metrics["loss"])
        if "gradient norm" in metrics:
            bad |= ~np.isfinite(metrics["gradient norm"])
        if not bad.any():
            return {name: float(values.mean()) for name, values in metrics.items()}
        step = first + int(bad.argmax())
        where = f"between steps {first} and {last}"
        if self.feed is not None:
            where = f"at step {step}, whose batch has the spectra {self._names(step)}"
        state = "there is no saved state"
        if self.states is not None and saved:
            state = f"the last good state is {self.states.folder / str(saved)}"
        raise TrainingError(f"{self.name}: the loss or its gradient is not finite {where}; {state}")

    def _names(self, step: int) -> str:
        """Return the ids of a batch: all in a file beside the metrics, and the first ones in words."""
        assert self.feed is not None
        ids = self.feed.ids(self._rows[step])
        text = ", ".join(ids[:4])
        if len(ids) <= 4:
            return text
        if self.options.log is None:
            return f"{text} and {len(ids) - 4} others"
        path = self.options.log / f"not-finite-{self.name}-{step}-{jax.process_index()}.txt"
        path.write_text("\n".join(ids) + "\n")
        return f"{text} and {len(ids) - 4} others, listed in {path}"

    def _scores(self, state: Tree) -> dict[str, float]:
        params = state.get("ema", state["params"])
        scores = self.evaluate((params, state["batch_stats"]), self.data)
        if self.validate is not None:
            scores |= self.validate(*gathered((params, state["batch_stats"]), self.mesh))
        return scores

    def _is_due(self, first: int, last: int) -> bool:
        every = self.options.save_every
        return every is None or last >= self.config.steps or first // every < last // every

    def _save(self, state: Tree, step: int) -> None:
        if self.states is not None:
            self.states.save(step, state, None if self.feed is None else self.feed.state())
            self.monitor.draw()

    def _must_end(self) -> bool:
        """Return whether SIGTERM reached any of the processes."""
        if jax.process_count() == 1:
            return self.termination.requested
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.array(self.termination.requested))))

    def _end(self, step: int) -> None:
        if self.states is None:
            raise Terminated(f"{self.name} was ended at step {step} without a saved state")
        self.states.wait()
        raise Terminated(f"{self.name} is saved after step {step}: {self.options.resume}")
