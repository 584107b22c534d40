"""Candidates of the selection: what every state of a training predicts for stars that it has not seen."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from specjax import lora
from specjax.adapt import forward
from specjax.adapt.configuration import TOWER_LABELS
from specjax.adapt.selection import Candidates, fold_of, stars_of_folds
from specjax.adapt.splits import Splits
from specjax.adapt.stage import Fitted
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.typing import Float32Array, FloatArray, IntArray, Tree


class Scorer:
    """Predicts the unseen stars of each seed: its training stars out of fold, and its validation stars."""

    def __init__(self, model: Foundation, target: Target, splits: Splits, zero_shot: FloatArray) -> None:
        """Store the arguments; zero_shot (n,) is the prediction of the model as it is, in physical units."""
        self.model, self.target, self.splits, self.zero_shot = model, target, splits, zero_shot
        self.unseen = splits.unseen  # (S, a + b)

    def candidates(
        self,
        heads: tuple[str, ...],
        fits: Sequence[Fitted],
        tower_scales: Sequence[float],
        head_scales: Sequence[float],
    ) -> Candidates:
        """Predict with the model as it is and with every state and factor on offer.

        Args:
            heads: heads whose predictions are averaged.
            fits: trainings, with runs of all folds; factors of earlier stages are kept as they are.
            tower_scales: factors on the updates of the tower that a training has made.
            head_scales: factors on those of the heads.
        """
        about = [(-1, 0, 0.0, 0.0)]
        unseen = [self.zero_shot[self.unseen]]
        for index, fitted in enumerate(fits):
            tower, head = split_tower(fitted.leaves)
            offered = (
                [scale for scale in tower_scales if scale] if tower else [fitted.scale],
                [scale for scale in head_scales if scale] if head else [0.0],
            )
            for step in range(snapshots(fitted)):
                for scales, predicted in self._predict(heads, fitted, step, offered):
                    about.append((index, step, *scales))
                    unseen.append(predicted)
        fit, step_of, tower_of, head_of = (np.array(column) for column in zip(*about, strict=True))
        return Candidates(fit, step_of, tower_of, head_of, np.stack(unseen, axis=1))

    def _predict(
        self,
        heads: tuple[str, ...],
        fitted: Fitted,
        step: int,
        offered: tuple[Sequence[float], Sequence[float]],
    ) -> Iterator[tuple[tuple[float, float], FloatArray]]:
        """Yield ((tower, head), predictions (S, a + b)) for all pairs of factors on one state."""
        rows, seeds, folds = self.splits.train, len(self.splits), fold_count(fitted)
        left_out = stars_of_folds(rows.shape[1], folds)  # (folds, c)
        place = fold_of(rows.shape[1], folds), np.arange(rows.shape[1]) // folds  # of each star in left_out
        whole = jax.tree.map(lambda leaf: leaf[:, 0, step], fitted.leaves)
        parts = jax.tree.map(lambda leaf: leaf[:, 1:, step].reshape(-1, *leaf.shape[3:]), fitted.leaves)
        parts_rows = rows[:, left_out].reshape(seeds * folds, -1)
        for tower in offered[0]:
            seen = [self._features(heads, fitted, parts, parts_rows, tower, folds)]
            if self.splits.validate.shape[1]:
                seen.append(self._features(heads, fitted, whole, self.splits.validate, tower, 1))
            for head in offered[1]:
                out_of_fold = self._labels(heads, parts, seen[0], head)  # (S x folds, c)
                predicted = [out_of_fold.reshape(seeds, *left_out.shape)[:, *place]]
                if len(seen) > 1:
                    predicted.append(self._labels(heads, whole, seen[1], head))
                yield (tower, head), np.concatenate(predicted, axis=1)

    def _features(
        self, heads: tuple[str, ...], fitted: Fitted, leaves: Tree, rows: IntArray, scale: float, copies: int
    ) -> dict[str, Float32Array]:
        tower = split_tower(leaves)[0]
        inputs = fitted.inputs
        if tower:
            tower = lora.scale_updates(tower, np.full(len(rows), scale, np.float32), dict(self.model.params))
        if fitted.own:
            inputs = jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=0), inputs)
        return forward.features(self.model, heads, tower, inputs, fitted.entry, rows, own=fitted.own)

    def _labels(
        self, heads: tuple[str, ...], leaves: Tree, features: dict[str, Float32Array], scale: float
    ) -> FloatArray:
        """Return the mean over heads of the label (R, b), in physical units."""
        model, label = self.model, self.target.label
        head_leaves = split_tower(leaves)[1]
        count = len(features[heads[0]])
        if head_leaves:
            by = np.full(count, scale, np.float32)
            head_leaves = lora.scale_updates(head_leaves, by, dict(model.params))
        physical = []
        for head in heads:
            x = forward.standardise_features(model, head, features[head])
            column = model.config.labels.index(label)
            mean, std = forward.label_scale(model, head, label)
            y = forward.run_head(model, head, head_leaves, x)[..., column].astype(np.float64)
            physical.append(y * std + mean)
        return np.asarray(np.mean(physical, axis=0))


def split_tower(leaves: Tree) -> tuple[Tree, Tree]:
    """Part trained leaves into those of the tower and those of the heads."""
    heads, tower = lora.split(leaves, TOWER_LABELS)
    return tower, heads


def snapshots(fitted: Fitted) -> int:
    """Return the number of states that a training offers, 1 if nothing was trained."""
    leaves = jax.tree.leaves(fitted.leaves)
    return leaves[0].shape[2] if leaves else 1


def fold_count(fitted: Fitted) -> int:
    """Return the number of folds of a training; what was not trained is the same in any folds."""
    leaves = jax.tree.leaves(fitted.leaves)
    return leaves[0].shape[1] - 1 if leaves else 1


def chosen_adapter(model: Foundation, fits: Sequence[Fitted], candidates: Candidates, pick: IntArray) -> Tree:
    """Return the leaves (S, ...) of the candidate that was picked for each seed, multiplied by its factors.

    Seeds that picked another training than the one that a leaf is from, or the model as it is, get zeros for
    it, or the model's own leaf.
    """
    known = flatten_dict(dict(model.params), sep="/")
    result: dict[str, np.ndarray] = {}
    fit_of, step_of = candidates.fit[pick], candidates.step[pick]
    for index, fitted in enumerate(fits):
        trained = flatten_dict(fitted.leaves, sep="/")
        below = flatten_dict(fitted.below, sep="/")
        seeds = np.flatnonzero(fit_of == index)
        for path, leaf in (trained | below).items():
            values = np.asarray(leaf)
            shape = (len(pick), *values.shape[3 if path in trained else 1 :])
            if path not in result:
                result[path] = np.array(np.broadcast_to(known.get(path, np.float32(0)), shape))
            result[path][seeds] = values[seeds, 0, step_of[seeds]] if path in trained else values[seeds]
    tower, heads = split_tower(unflatten_dict(result, sep="/"))
    base = dict(model.params)
    # What is below has been multiplied already.
    free = np.array([bool(split_tower(fits[index].leaves)[0]) if index >= 0 else True for index in fit_of])
    by_tower = jnp.asarray(np.where(free, candidates.tower[pick], 1.0), jnp.float32)
    by_head = jnp.asarray(candidates.head[pick], jnp.float32)
    scaled = [
        lora.scale_updates(tree, by, base) if tree else {}
        for tree, by in ((tower, by_tower), (heads, by_head))
    ]
    return lora.combine(*scaled)
