"""One set of low-rank factors for several labels: a label head is trained on all of them together.

Schedules, folds and selection are those of `specjax adapt` for heads alone, with the robust loss averaged
over the standardised labels. With one label, the result is that of the configuration lora2 or lora4.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt import forward
from specjax.adapt.configuration import Configuration
from specjax.adapt.selection import Candidates, fold_of, select, stars_of_folds
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.start import initial_leaves
from specjax.adapt.tower import head_output
from specjax.foundation import Foundation
from specjax.train.loop import Loss, fit
from specjax.train.losses import pseudo_huber_loss
from specjax.train.optimizer import make_optimizer
from specjax.typing import Float32Array, FloatArray, Tree


def adapted_jointly(
    model: Foundation,
    configuration: Configuration,
    features: Float32Array,
    truth: FloatArray,
    labels: Sequence[str],
    splits: Splits,
    config: AdaptConfig,
) -> FloatArray:
    """Adapt a head to several labels at once and predict all stars.

    Args:
        model: the model to adapt.
        configuration: lora2 or lora4.
        features: (n, d) what the head reads, as `Foundation.features` returns it.
        truth: (n, k) the labels in physical units; those of test stars are not used.
        labels: their names, k of the model's.
        splits: S splits.
        config: folds, trainings of heads on offer and factors on their updates.

    Returns:
        (S, n, k) in physical units.
    """
    (head,) = configuration.heads
    mean, std = np.array([forward.label_scale(model, head, label) for label in labels]).T
    y = ((truth - mean) / std).astype(np.float32)
    x = np.asarray(forward.standardise_features(model, head, np.asarray(features)), np.float32)
    columns = [model.config.labels.index(label) for label in labels]
    problem = _Problem(model, head, columns, x, y, splits, config)
    start = initial_leaves(model.config, configuration, config.ranks)(_keys(splits), model.variables)
    everything, unseen = [problem.predict({})], [problem.unseen({}, None)]
    for stage in config.head:
        result = fit(
            problem.loss,
            make_optimizer(stage.schedules(configuration.groups), steps=stage.steps),
            frozen=problem.frozen,
            trainable=jax.tree.map(lambda leaf: jnp.repeat(leaf, problem.runs, axis=0), start),
            shared=jnp.asarray(x),
            per_seed=jax.tree.map(jnp.asarray, problem.own()),
            keys=jnp.repeat(_keys(splits), problem.runs, axis=0),
            steps=stage.steps,
            snapshots=stage.snapshots,
        ).snapshots
        leaves = jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(len(splits), problem.runs, *leaf.shape[1:]), result
        )
        for step in range(stage.snapshots):
            state = jax.tree.map(lambda leaf, step=step: leaf[:, :, step], leaves)
            for scale in (scale for scale in config.head_scales if scale):
                whole = jax.tree.map(lambda leaf: leaf[:, 0], state)
                parts = jax.tree.map(lambda leaf: leaf[:, 1:].reshape(-1, *leaf.shape[2:]), state)
                full, left_out = (problem.scaled(tree, scale) for tree in (whole, parts))
                everything.append(problem.predict(full))
                unseen.append(problem.unseen(full, left_out))
    nothing = np.zeros(len(everything))
    offered = Candidates(nothing.astype(int), nothing.astype(int), nothing, nothing, np.stack(unseen, axis=1))
    pick = select(offered, problem.unseen_truth())
    chosen = np.stack(everything, axis=1)[np.arange(len(splits)), pick]
    return np.asarray(chosen * std + mean)


class _Problem:
    """Data and programs of one joint training; predictions are of standardised labels."""

    def __init__(
        self,
        model: Foundation,
        head: str,
        columns: list[int],
        x: Float32Array,
        y: Float32Array,
        splits: Splits,
        config: AdaptConfig,
    ) -> None:
        self.model, self.head, self.columns, self.x, self.y, self.splits = model, head, columns, x, y, splits
        self.folds = config.folds
        self.runs = self.folds + 1
        self.frozen: Tree = {
            "params": {head: model.params[head]},
            "batch_stats": {head: model.variables["batch_stats"][head]},
        }
        self.loss = self._make_loss()

    def own(self) -> Tree:
        """Return rows, y and weight of each seed and run: all training stars, then all but one fold."""
        rows, count = self.splits.train, self.splits.train.shape[1]
        fold = fold_of(count, self.folds)
        used = np.stack([np.ones(count), *(1.0 * (fold != k) for k in range(self.folds))])
        return {
            "rows": np.repeat(rows, self.runs, axis=0),
            "y": np.repeat(self.y[rows], self.runs, axis=0),
            "weight": np.tile(used, (len(rows), 1)).astype(np.float32),
        }

    def _make_loss(self) -> Loss:
        model, head, columns = self.model, self.head, np.array(self.columns)

        def loss(trained: Tree, frozen: Tree, x: Tree, own: Tree, key: jax.Array) -> jax.Array:
            del key
            params = lora.overlay(frozen["params"], trained)
            predicted = head_output(model.config, head, params, frozen["batch_stats"], x[own["rows"]])
            weight = jnp.broadcast_to(own["weight"][:, None], own["y"].shape)
            return pseudo_huber_loss(predicted[:, columns] - own["y"], weight)

        return loss

    def scaled(self, leaves: Tree, scale: float) -> Tree:
        """Multiply the updates of runs by a factor."""
        runs = len(jax.tree.leaves(leaves)[0])
        return lora.scale_updates(leaves, np.full(runs, scale, np.float32), dict(self.model.params))

    def _labels(self, leaves: Tree, x: Float32Array) -> FloatArray:
        """Return labels (R, b, k) of features (R, b, d)."""
        found = forward.run_head(self.model, self.head, leaves, x)
        return np.asarray(found[..., self.columns], np.float64)

    def predict(self, leaves: Tree) -> FloatArray:
        """Predict all stars of every seed: (S, n, k)."""
        return self._labels(leaves, np.broadcast_to(self.x, (len(self.splits), *self.x.shape)))

    def unseen(self, whole: Tree, parts: Tree | None) -> FloatArray:
        """Predict training stars by the run that left them out, and validation stars: (S, (a + b) k)."""
        rows, seeds = self.splits.train, len(self.splits)
        if parts is None:
            out_of_fold = self._labels(whole, self.x[rows])
        else:
            left_out = stars_of_folds(rows.shape[1], self.folds)
            found = self._labels(parts, self.x[rows[:, left_out].reshape(seeds * self.folds, -1)])
            place = fold_of(rows.shape[1], self.folds), np.arange(rows.shape[1]) // self.folds
            out_of_fold = found.reshape(seeds, *left_out.shape, -1)[:, *place]
        seen = [out_of_fold]
        if self.splits.validate.shape[1]:
            seen.append(self._labels(whole, self.x[self.splits.validate]))
        return np.concatenate(seen, axis=1).reshape(seeds, -1)

    def unseen_truth(self) -> FloatArray:
        """Return the labels of the stars of `unseen`: (S, (a + b) k)."""
        rows = np.concatenate([self.splits.train, self.splits.validate], axis=1)
        return np.asarray(self.y[rows].reshape(len(rows), -1), np.float64)


def _keys(splits: Splits) -> jax.Array:
    """Return the keys (S,) of the seeds, those of `specjax adapt`."""
    seeds = jnp.asarray(splits.seeds)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
