"""One stage of an adaptation: a program that trains all groups of a configuration, or some, together.

The trained tree holds the leaves of all these groups; `optax.multi_transform` gives each its schedule.
Everything else is frozen, has one copy for all seeds, and runs once below the first trained layer. The
program is vmapped over seeds, and for cross-validation over the folds of each: `runs` copies of a seed, the
first trained on all of its training stars.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from specjax import lora
from specjax.adapt import activations, forward, objectives
from specjax.adapt.buckets import padded
from specjax.adapt.configuration import TOWER_LABELS, Configuration
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.objectives import Objective, Problem
from specjax.adapt.selection import fold_of
from specjax.adapt.splits import Splits
from specjax.adapt.start import (
    Ranks,
    Start,
    as_updates,
    initial_leaves,
    principal_factors,
    spanning_factors,
)
from specjax.adapt.tower import Entry, entry_of
from specjax.batching import micro_batch_size
from specjax.config import LORA_GROUPS
from specjax.errors import ConfigError
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.train.loop import fit
from specjax.train.optimizer import GroupSchedule, factor_schedules, make_optimizer
from specjax.typing import FloatArray, IntArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings of a stage.

    Attributes:
        steps: optimizer steps.
        batch: rows of each term of the objective in a step; None trains on all training stars at once.
        snapshots: evenly spaced states that are kept as candidates for the selection, the last at the end.
        tower: schedule of each group in the LAMOST tower.
        head: schedule of each group in the label heads.
        ratio: learning rate of the factors B over that of A (LoRA+).
        freeze_a: train the factors B only (LoRA-FA).
        objective: weights of the terms of the loss; those that nothing in a configuration serves are ignored.

    Raises:
        ConfigError: steps that cannot be cut into the snapshots, or terms that need a batch without one.
    """

    steps: int
    batch: int | None = None
    snapshots: int = 1
    tower: GroupSchedule = GroupSchedule(learning_rate=1e-3)
    head: GroupSchedule = GroupSchedule(learning_rate=1e-3, weight_decay=0.1)
    ratio: float = 1.0
    freeze_a: bool = False
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        if self.snapshots < 1 or self.steps < 1 or self.steps % self.snapshots:
            raise ConfigError(f"{self.steps} steps cannot be cut into {self.snapshots} equal parts")
        if self.batch is None and (self.objective.masked or self.objective.contrastive):
            raise ConfigError("masked modelling and alignment need a batch size")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"a batch needs at least one row, not {self.batch}")

    def schedules(self, groups: Iterable[str]) -> dict[str, GroupSchedule]:
        """Return the schedule of each label, for `make_optimizer`."""
        schedules: dict[str, GroupSchedule] = {}
        for group in groups:
            schedule = self.tower if group in TOWER_LABELS else self.head
            if group in LORA_GROUPS:
                schedules |= factor_schedules([group], schedule, ratio=self.ratio, freeze_a=self.freeze_a)
            else:
                schedules[group] = schedule
        return schedules


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What a stage has trained, and what is needed to predict with it.

    Attributes:
        leaves: the trained leaves, (S, runs, snapshots, ...); {} if nothing was trained.
        below: factors of earlier stages, leaves (S, ...), as the stage used them.
        scale: by which `below` was multiplied.
        entry: where the program enters the tower.
        inputs: of the labelled stars at the entry, leaves (n, ...), or (S, n, ...) if `own`.
        own: see `inputs`.
    """

    leaves: Tree
    below: Tree
    scale: float
    entry: Entry
    inputs: Tree
    own: bool


class Trainer:
    """Trains stages on one target."""

    def __init__(
        self,
        model: Foundation,
        inputs: TargetInputs,
        splits: Splits,
        keys: jax.Array,
        ranks: Ranks = (),
        start: Start = "random",
        say: Say = silent,
    ) -> None:
        """Store the arguments; keys (S,) are those of the seeds."""
        self.model, self.inputs, self.splits, self.keys = model, inputs, splits, keys
        self.ranks, self.start, self.say = ranks, start, say
        self.target = inputs.target

    def untrained(self, heads: tuple[str, ...], below: Tree, scale: float) -> Fitted:
        """Return the heads as they are on a tower with the factors `below`."""
        entry = Entry("features")
        return Fitted({}, below, scale, entry, *self.inputs.labelled_at(entry, heads, below))

    def train(
        self,
        configuration: Configuration,
        stage: Stage,
        *,
        folds: int = 0,
        below: Tree | None = None,
        scale: float = 0.0,
    ) -> Fitted:
        """Train the groups of a configuration together.

        Args:
            configuration: what is trained, and the heads in the label term.
            stage: settings.
            folds: parts of the training stars, each of which is left out of a run of its own.
            below: factors of earlier stages, leaves (S, ...).
            scale: by which `below` was multiplied.

        Raises:
            ConfigError: no term of the objective trains these groups.
            ModelError: a group that has nothing to adapt in this model.
            DataError: spectra that the objective needs are missing.
        """
        model, runs, below = self.model, folds + 1, below or {}
        start = initial_leaves(model.config, configuration, self.ranks)(self.keys, model.variables)
        entry = entry_of(start)
        objective = served(stage.objective, configuration)
        heads = configuration.heads if objective.label else ()
        inputs, own_inputs = self.inputs.labelled_at(entry, configuration.heads, below)
        frozen = self._frozen(entry, configuration.heads)
        start, frozen = self._started(start, frozen, entry, inputs, own_inputs)
        shared: Tree = {}
        own: Tree = {}
        if objective.label:
            own |= self._labels(heads, folds)
            (own if own_inputs else shared)["labelled"] = _repeated(inputs, runs) if own_inputs else inputs
            if objective.anchor:
                shared["frozen"] = self._frozen_features(heads)
        if objective.masked:
            shared["pool"], own["in_pool"] = self.inputs.pool(self._trained_on(folds))
        if objective.contrastive:
            pairs, shared["z_xp"], own_pairs = self.inputs.pairs_at(entry, below)
            (own if own_pairs else shared)["pairs"] = _repeated(pairs, runs) if own_pairs else pairs
            if objective.anchor:
                shared["z_frozen"] = self.inputs.frozen_pairs()
        problem = Problem(
            config=model.config,
            dtype=model.dtype,
            entry=entry,
            heads=heads,
            objective=objective,
            batch=stage.batch,
            rows=self._rows(entry, stage.batch, runs),
        )
        first = stage.steps // stage.snapshots
        result = fit(
            objectives.make_loss(problem),
            _optimizer(tuple(sorted(stage.schedules(configuration.groups).items())), stage.steps),
            frozen=frozen,
            trainable=_repeated(start, runs),
            shared=jax.tree.map(jnp.asarray, shared),
            per_seed=jax.tree.map(jnp.asarray, own),
            keys=jnp.repeat(_stage_keys(self.keys, _number_of(configuration)), runs, axis=0),
            steps=stage.steps,
            snapshots=stage.snapshots,
            devices=jax.local_devices(),  # processes share the seeds of a study, see `adapt.shares`
        )
        losses = np.asarray(result.loss).reshape(len(self.keys), runs, -1)[:, 0].mean(axis=0)
        rates = {schedule.learning_rate for schedule in stage.schedules(configuration.groups).values()}
        self.say(
            f"{self.target.name}: {'+'.join(configuration.groups)}: trained for {stage.steps} steps at"
            f" learning rate {max(rates):g}; mean loss on the training spectra {_losses(losses, first)}"
        )
        # NumPy, so that cutting candidates out of them compiles nothing.
        leaves = jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(len(self.keys), runs, *leaf.shape[1:]), result.snapshots
        )
        if self.start == "pissa":
            leaves = as_updates(leaves, start)
        return Fitted(leaves, below, scale, entry, inputs, own_inputs)

    def _started(self, start: Tree, frozen: Tree, entry: Entry, inputs: Tree, own: bool) -> tuple[Tree, Tree]:
        """Put low-rank factors where they are to start; returns the leaves and what is frozen beside them."""
        ranks = lora.adapted_layers(start)
        if self.start == "random" or not ranks:
            return start, frozen
        model = self.model
        if self.start == "pissa":
            start = principal_factors(start, dict(model.params), model.config)
            factors = jax.tree.map(lambda leaf: leaf[0], lora.split(start, LORA_GROUPS)[1])
            rest = lora.unmerge(frozen["params"], factors, model.config.loras)
            return start, {**frozen, "params": rest}
        directions = activations.leading_directions(
            model.config, model.dtype, frozen, ranks, inputs, entry, self.splits.train, own=own
        )
        return spanning_factors(start, directions), frozen

    def _labels(self, heads: tuple[str, ...], folds: int) -> Tree:
        """Return rows, y and weight, leaves (S x runs, a); runs use all stars, then all but one fold.

        `a` is the padded number of training stars; the padding repeats the first one, with weight 0. The
        weights of the others are those of the target.
        """
        rows, runs, weight = self.splits.train, folds + 1, _used(self.splits.train.shape[1], folds)
        more = padded(rows.shape[1]) - rows.shape[1]
        rows = np.concatenate([rows, np.repeat(rows[:, :1], more, axis=1)], axis=1)
        weight = np.tile(np.pad(weight, [(0, 0), (0, more)]), (len(rows), 1))
        by_run = np.repeat(rows, runs, axis=0)
        if self.target.weight is not None:
            weight = weight * (self.target.weight / self.target.weight.mean())[by_run]
        return {
            "rows": by_run,
            "y": {head: np.repeat(self.truth(head)[rows], runs, axis=0) for head in heads},
            "weight": weight.astype(np.float32),
        }

    def truth(self, head: str) -> FloatArray:
        """Return the labels (n,) of all stars, standardised for a head."""
        mean, std = forward.label_scale(self.model, head, self.target.label)
        return np.asarray((self.target.truth - mean) / std, np.float32)

    def _trained_on(self, folds: int) -> np.ndarray:
        """Return (S x runs, n) True for the labelled stars that each run trains on."""
        rows, runs = np.repeat(self.splits.train, folds + 1, axis=0), folds + 1
        used = np.tile(_used(rows.shape[1], folds), (len(rows) // runs, 1)) > 0
        allowed = np.zeros((len(rows), len(self.target.labelled)), bool)
        np.put_along_axis(allowed, rows, used, axis=1)
        return allowed

    def _frozen_features(self, heads: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {head: self.model.head_features(self.inputs.base, head) for head in heads}

    def _frozen(self, entry: Entry, heads: tuple[str, ...]) -> Tree:
        """Return the parameters from the entry on, and the statistics of the heads."""
        model = self.model
        params = {head: model.params[head] for head in heads}
        if entry.level != "features":
            wanted = ("backbone", "projection") if entry.is_in_backbone else ("projection",)
            tower = model.params["lamost"]
            params["lamost"] = {name: tower[name] for name in wanted if name in tower}
        stats = {
            head: {
                name: jnp.asarray(forward.head_stats(model, head)[name], jnp.float32)
                for name in ("feature_mean", "feature_std")
            }
            for head in heads
        }
        batch_stats = {head: model.variables["batch_stats"][head] for head in heads}
        column = jnp.int32(model.config.labels.index(self.target.label))
        return {"params": params, "stats": stats, "batch_stats": batch_stats, "column": column}

    def _rows(self, entry: Entry, batch: int | None, runs: int) -> int | None:
        if not entry.is_in_backbone:
            return None
        size = self.splits.train.shape[1] if batch is None else batch
        itemsize = np.dtype(self.model.dtype).itemsize
        return micro_batch_size(self.model.config, size, len(self.keys) * runs, itemsize)


def served(objective: Objective, configuration: Configuration) -> Objective:
    """Drop the terms that nothing in a configuration serves.

    Raises:
        ConfigError: no term is left.
    """
    tower = bool(configuration.tower_groups)
    weights = dataclasses.asdict(objective)
    if not {"lora1", "lamost/backbone"} & set(configuration.groups):
        weights["masked"] = 0.0
    if not (tower and "mlp2" in configuration.heads):
        weights["contrastive"] = 0.0
    if not (tower and (weights["label"] or weights["contrastive"])):
        weights["anchor"] = 0.0
    if not any(weights.values()):
        given = ", ".join(name for name, weight in dataclasses.asdict(objective).items() if weight)
        trained = "+".join(configuration.groups)
        raise ConfigError(f"{configuration.name}: no term of the objective ({given}) trains {trained}")
    return Objective(**weights)


def _used(count: int, folds: int) -> FloatArray:
    """Return (runs, count): 1 for the training stars that a run uses, all of them in the first."""
    fold: IntArray = fold_of(count, max(folds, 1))
    return np.stack([np.ones(count), *(1.0 * (fold != k) for k in range(folds))])


def _repeated(tree: Tree, runs: int) -> Tree:
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), runs, axis=0), tree)


def _number_of(configuration: Configuration) -> int:
    """Return a number for the random draws of a configuration, the same in every process."""
    return zlib.crc32("+".join(configuration.groups).encode())


@functools.partial(jax.jit, static_argnums=1)
def _stage_keys(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


@functools.cache
def _optimizer(schedules: tuple[tuple[str, GroupSchedule], ...], steps: int) -> optax.GradientTransformation:
    """Make the optimizer, the same object for the same arguments: `fit` compiles one program for each."""
    return make_optimizer(dict(schedules), steps=steps)


def _losses(losses: FloatArray, steps: int) -> str:
    """State the losses of the snapshots (c,), each the mean over so many steps."""
    if len(losses) == 1:
        return f"{losses[0]:.4f}"
    return f"{losses[0]:.4f} in the first {steps} steps, {losses[-1]:.4f} in the last {steps}"
