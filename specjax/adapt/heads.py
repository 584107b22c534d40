"""LoRA2 and LoRA4: the heads' factors on features of the labelled stars, for every seed and fold."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.adapt import programs
from specjax.adapt.selection import Candidates, fold_of, left_out_of
from specjax.adapt.target import Splits, Target
from specjax.foundation import Foundation
from specjax.foundation.inference import NEUTRAL_STATS
from specjax.train.loop import fit
from specjax.train.optimizer import GroupSchedule
from specjax.typing import FloatArray, Tree

GROUPS = {"mlp1": "lora2", "mlp2": "lora4"}  # which factors adapt a head
DENSITY_WIDTH = 0.25  # of the Gaussian by which training stars are counted, in standardised labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadStage:
    """LoRA2 or LoRA4: full batches of all training stars; the state is kept `snapshots` times."""

    steps: int = 80
    snapshots: int = 4
    schedule: GroupSchedule = GroupSchedule(learning_rate=1e-3, weight_decay=0.1)


class Heads:
    """Adapts the heads of a model to the labelled stars of a target."""

    def __init__(
        self,
        model: Foundation,
        target: Target,
        splits: Splits,
        keys: jax.Array,
        *,
        stage: HeadStage,
        folds: int,
        shrinkage: tuple[float, ...],
        balance: float,
    ) -> None:
        """Take S splits and as many keys, and the numbers of an `AdaptConfig`.

        The model must predict the target's label.
        """
        self.model, self.target, self.splits, self.keys = model, target, splits, keys
        self.stage, self.folds, self.shrinkage, self.balance = stage, folds, shrinkage, balance
        self.column = model.config.labels.index(target.label)

    def candidates(self, head: str, group: str | None, features: jax.Array, tower: float) -> Candidates:
        """Adapt a head's factors of `group`, if any, on features (S, n, d), or (1, n, d) for all seeds.

        `tower` is the scale of the towers' factors that gave the features.
        """
        features = self._standardised_features(head, features)
        rows = self.splits.train
        none = self._predict(head, None, {}, features)  # (S, n)
        base = none[:, None], np.take_along_axis(none, rows, axis=1)[:, None]
        if group is None:  # the same head in every fold
            return Candidates(tower, *base, np.zeros(1), np.zeros(1), {})
        seeds, runs = len(features), self.folds + 1
        factors = self._fit_head(head, group, self._training_data(head, features), runs)
        factors = jax.tree.map(lambda leaf: leaf.reshape(seeds, runs, *leaf.shape[1:]), factors)
        whole = jax.tree.map(lambda leaf: leaf[:, 0], factors)
        shrinkage = np.array([s for s in self.shrinkage if s > 0])
        steps = self.stage.snapshots
        parts = [base, *self._shrunk_predictions(head, group, factors, features, shrinkage)]
        amount = np.concatenate([[0.0], np.tile(shrinkage, steps)])
        step_of = np.concatenate([[0.0], np.repeat(np.arange(1.0, steps + 1), len(shrinkage))])
        predictions, out_of_fold = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return Candidates(tower, predictions, out_of_fold, amount, step_of, whole)

    def _shrunk_predictions(
        self, head: str, group: str, factors: Tree, features: jax.Array, shrinkage: FloatArray
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Predict with each snapshot of factors (S, runs, snapshots, ...) times each of `shrinkage`.

        Yields predictions of all stars (S, 1, n), and out of fold (S, 1, a): a fold's run predicts the
        training stars that it did not see, and no others.
        """
        rows, folds, seeds = self.splits.train, self.folds, len(features)
        left_out = left_out_of(rows.shape[1], folds)  # (folds, b)
        unseen = features[np.arange(seeds)[:, None, None], rows[:, left_out]]  # (S, folds, b, d)
        unseen = unseen.reshape(-1, *unseen.shape[2:])
        place = fold_of(rows.shape[1], folds), np.arange(rows.shape[1]) // folds  # of each star in left_out
        for step in range(self.stage.snapshots):
            whole = jax.tree.map(lambda leaf, step=step: leaf[:, 0, step], factors)
            parts = jax.tree.map(
                lambda leaf, step=step: leaf[:, 1:, step].reshape(-1, *leaf.shape[3:]), factors
            )
            for by in shrinkage:
                shrunk = programs.scaled(whole, jnp.full(seeds, by))
                shrunk_parts = programs.scaled(parts, jnp.full(seeds * folds, by))
                predictions = self._predict(head, group, shrunk, features)
                parted = self._predict(head, group, shrunk_parts, unseen).reshape(seeds, *left_out.shape)
                yield predictions[:, None], parted[:, *place][:, None]

    def _training_data(self, head: str, features: jax.Array) -> Tree:
        """Each run's x, y and weight, leaves (S x runs, a, ...): all training stars, then all but a fold."""
        rows, folds = self.splits.train, self.folds
        fold = fold_of(rows.shape[1], folds)
        used = np.stack([np.ones(len(fold))] + [fold != k for k in range(folds)])  # (runs, a)
        weight = self.weights(head)[:, None] * used
        own = {
            "x": jnp.take_along_axis(features, jnp.asarray(rows)[..., None], axis=1),
            "y": self._standardised(head)[jnp.asarray(rows)],
        }
        flat = {name: jnp.repeat(value, folds + 1, axis=0) for name, value in own.items()}
        return {**flat, "weight": jnp.asarray(weight.reshape(-1, len(fold)), jnp.float32)}

    def weights(self, head: str) -> FloatArray:
        """How much each training star counts, (S, a), 1 in the mean."""
        labels = self.truth(head)
        apart = (labels[:, :, None] - labels[:, None]) / DENSITY_WIDTH
        weight = np.exp(-0.5 * apart**2).sum(axis=2) ** -self.balance
        return np.asarray(weight / weight.mean(axis=1, keepdims=True))

    def _fit_head(self, head: str, group: str, data: Tree, runs: int) -> Tree:
        """Train S x runs copies of the head's factors; leaves (S x runs, snapshots, ...)."""
        stage, config = self.stage, self.model.config
        start = programs.start(config, group)(self.keys, self.model.params)
        result = fit(
            programs.head_loss(config, head, group, self.column),
            programs.optimizer(group, stage.schedule, stage.steps),
            frozen={head: self.model.params[head]},
            trainable=jax.tree.map(lambda leaf: jnp.repeat(leaf, runs, axis=0), start),
            shared=self.model.variables["batch_stats"][head],
            per_seed=data,
            keys=jnp.repeat(self.keys, runs, axis=0),
            steps=stage.steps,
            snapshots=stage.snapshots,
        )
        return result.snapshots

    def _predict(self, head: str, group: str | None, factors: Tree, features: jax.Array) -> FloatArray:
        """Standardised label (runs, n) from features (runs, n, d) with each run's factors."""
        program = programs.head_program(self.model.config, head, group)
        frozen = {head: self.model.params[head]}
        stats = self.model.variables["batch_stats"][head]
        return np.asarray(program(frozen, factors, stats, features)[..., self.column], np.float64)

    def truth(self, head: str) -> FloatArray:
        """Return the training stars' labels (S, a), standardised as the head's output is."""
        return np.asarray(self._standardised(head), np.float64)[self.splits.train]

    def _stats(self, head: str) -> dict[str, Any]:
        return {**NEUTRAL_STATS, **self.model.stats.get(head, {})}

    def _label_scale(self, head: str) -> tuple[float, float]:
        """Mean and standard deviation of the label, by which the head's output is standardised."""
        stats, labels = self._stats(head), len(self.model.config.labels)
        mean, std = (np.broadcast_to(stats[name], labels) for name in ("label_mean", "label_std"))
        return float(mean[self.column]), float(std[self.column])

    def _standardised(self, head: str) -> jax.Array:
        mean, std = self._label_scale(head)
        return jnp.asarray((self.target.truth - mean) / std, jnp.float32)

    def physical(self, head: str, standardised: FloatArray) -> FloatArray:
        """Return the head's standardised output in the label's unit."""
        mean, std = self._label_scale(head)
        return standardised * std + mean

    def _standardised_features(self, head: str, features: jax.Array) -> jax.Array:
        """Standardise features as the head's training did: (S, n, d)."""
        stats = self._stats(head)
        standardised = (features - stats["feature_mean"]) / stats["feature_std"]
        return jnp.broadcast_to(standardised, (len(self.splits), *standardised.shape[1:]))
