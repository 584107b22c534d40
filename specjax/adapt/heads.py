"""LoRA2 and LoRA4: factors of the label heads, trained on features of the labelled stars."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt import objectives
from specjax.adapt.forward import label_scale, run_head, standardise_features
from specjax.adapt.selection import Candidates, fold_of, stars_of_folds
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.train.loop import fit
from specjax.train.optimizer import GroupSchedule
from specjax.typing import FloatArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadStage:
    """LoRA2 or LoRA4: full batches of all training stars; `snapshots` states are kept as candidates."""

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
    ) -> None:
        """Store the arguments.

        Args:
            model: the base model, which must predict the target's label.
            target: the survey, with n labelled stars.
            splits: S splits of these stars.
            keys: (S,) random keys.
            stage: settings of the training.
            folds: number of folds of the cross-validation.
            shrinkage: factors by which the low-rank updates may be multiplied.
        """
        self.model, self.target, self.splits, self.keys = model, target, splits, keys
        self.stage, self.folds, self.shrinkage = stage, folds, shrinkage
        self.column = model.config.labels.index(target.label)

    def candidates(self, head: str, group: str | None, features: jax.Array, tower: float) -> Candidates:
        """Adapt a head's factors of `group`, if any, on features (S, n, d), or (1, n, d) for all seeds.

        `tower` is the scale of the tower's factors with which the features were made.
        """
        features = standardise_features(self.model, head, features)
        features = jnp.broadcast_to(features, (len(self.splits), *features.shape[1:]))
        rows = self.splits.train
        unadapted = self._predict(head, {}, features)  # (S, n)
        base = unadapted[:, None], np.take_along_axis(unadapted, rows, axis=1)[:, None]
        if group is None:  # the same head in every fold
            return Candidates(tower, *base, np.zeros(1), np.zeros(1), {})
        seeds, runs = len(features), self.folds + 1
        factors = self._fit_head(head, group, self._training_data(head, features), runs)
        factors = jax.tree.map(lambda leaf: leaf.reshape(seeds, runs, *leaf.shape[1:]), factors)
        whole = jax.tree.map(lambda leaf: leaf[:, 0], factors)
        shrinkage = np.array([s for s in self.shrinkage if s > 0])
        steps = self.stage.snapshots
        parts = [base, *self._shrunk_predictions(head, factors, features, shrinkage)]
        amount = np.concatenate([[0.0], np.tile(shrinkage, steps)])
        step_of = np.concatenate([[0.0], np.repeat(np.arange(1.0, steps + 1), len(shrinkage))])
        predictions, out_of_fold = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return Candidates(tower, predictions, out_of_fold, amount, step_of, whole)

    def _shrunk_predictions(
        self, head: str, factors: Tree, features: jax.Array, shrinkage: FloatArray
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Predict with each snapshot of factors (S, runs, snapshots, ...) times each of `shrinkage`.

        Yields:
            Predictions of all stars (S, 1, n), and out of fold (S, 1, a): the run of each fold predicts the
            training stars that it left out, and no others.
        """
        rows, folds, seeds = self.splits.train, self.folds, len(features)
        left_out = stars_of_folds(rows.shape[1], folds)  # (folds, b)
        unseen = features[np.arange(seeds)[:, None, None], rows[:, left_out]]  # (S, folds, b, d)
        unseen = unseen.reshape(-1, *unseen.shape[2:])
        place = fold_of(rows.shape[1], folds), np.arange(rows.shape[1]) // folds  # of each star in left_out
        for step in range(self.stage.snapshots):
            whole = jax.tree.map(lambda leaf, step=step: leaf[:, 0, step], factors)
            parts = jax.tree.map(
                lambda leaf, step=step: leaf[:, 1:, step].reshape(-1, *leaf.shape[3:]), factors
            )
            for by in shrinkage:
                shrunk = lora.scale_updates(whole, jnp.full(seeds, by))
                shrunk_parts = lora.scale_updates(parts, jnp.full(seeds * folds, by))
                predictions = self._predict(head, shrunk, features)
                parted = self._predict(head, shrunk_parts, unseen).reshape(seeds, *left_out.shape)
                yield predictions[:, None], parted[:, *place][:, None]

    def _training_data(self, head: str, features: jax.Array) -> Tree:
        """Return x, y and weight, leaves (S x runs, a, ...); runs use all stars, then all but one fold."""
        rows, folds = self.splits.train, self.folds
        fold = fold_of(rows.shape[1], folds)
        used = np.stack([np.ones(len(fold))] + [fold != k for k in range(folds)])  # (runs, a)
        own = {
            "x": jnp.take_along_axis(features, jnp.asarray(rows)[..., None], axis=1),
            "y": self._standardised(head)[jnp.asarray(rows)],
        }
        flat = {name: jnp.repeat(value, folds + 1, axis=0) for name, value in own.items()}
        return {**flat, "weight": jnp.asarray(np.tile(used, (len(rows), 1)), jnp.float32)}

    def _fit_head(self, head: str, group: str, data: Tree, runs: int) -> Tree:
        """Train S x runs copies of the head's factors; leaves (S x runs, snapshots, ...)."""
        stage, config = self.stage, self.model.config
        start = objectives.initial_factors(config, group)(self.keys, self.model.params)
        result = fit(
            objectives.head_loss(config, head, group, self.column),
            objectives.optimizer(group, stage.schedule, stage.steps),
            frozen={head: self.model.params[head]},
            trainable=jax.tree.map(lambda leaf: jnp.repeat(leaf, runs, axis=0), start),
            shared=self.model.variables["batch_stats"][head],
            per_seed=data,
            keys=jnp.repeat(self.keys, runs, axis=0),
            steps=stage.steps,
            snapshots=stage.snapshots,
        )
        return result.snapshots

    def _predict(self, head: str, factors: Tree, features: jax.Array) -> FloatArray:
        """Predict the standardised label (runs, n) from features (runs, n, d) with each run's factors."""
        return np.asarray(run_head(self.model, head, factors, features)[..., self.column], np.float64)

    def truth(self, head: str) -> FloatArray:
        """Return the training stars' labels (S, a), standardised for a head."""
        return np.asarray(self._standardised(head), np.float64)[self.splits.train]

    def physical(self, head: str, standardised: FloatArray) -> FloatArray:
        """Return a head's standardised output in the label's unit."""
        mean, std = label_scale(self.model, head, self.target.label)
        return standardised * std + mean

    def _standardised(self, head: str) -> jax.Array:
        mean, std = label_scale(self.model, head, self.target.label)
        return jnp.asarray((self.target.truth - mean) / std, jnp.float32)
