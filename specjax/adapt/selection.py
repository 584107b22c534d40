"""Selection of the adaptation strength by cross-validation, separately for each seed.

A candidate is a state of a training, with the updates of the tower and of the heads multiplied by a factor
each. It is scored on stars that its training has not seen: each training star by the run that left it out,
and the validation stars.
"""

import dataclasses

import numpy as np

from specjax.train.losses import pseudo_huber
from specjax.typing import FloatArray, IntArray


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Ways to adapt, C of them.

    Attributes:
        fit: (C,) training that a candidate comes from; -1 for the model as it is.
        step: (C,) snapshot of the training, from 0.
        tower: (C,) factor on the updates in the tower.
        head: (C,) factor on the updates in the heads.
        unseen: (S, C, k) predictions of stars that the training has not seen.
    """

    fit: IntArray
    step: IntArray
    tower: FloatArray
    head: FloatArray
    unseen: FloatArray


def fold_of(count: int, folds: int) -> IntArray:
    """Return the fold of each of `count` training stars, which are in random order already."""
    fold: IntArray = np.arange(count) % folds
    return fold


def stars_of_folds(count: int, folds: int) -> IntArray:
    """Return the stars of each fold, (folds, b): star s is at [s % folds, s // folds].

    If folds differ in size, the empty places hold the last star.
    """
    places = np.arange(folds)[:, None] + folds * np.arange(-(-count // folds))
    stars: IntArray = np.minimum(places, count - 1)
    return stars


def select(candidates: Candidates, truth: FloatArray, weight: FloatArray | None = None) -> IntArray:
    """Return the candidate (S,) with the smallest robust loss for each seed.

    The first candidate remains unless another is better. Training that diverged is never selected.

    Args:
        candidates: the first is the model as it is.
        truth: (S, k) labels of these stars, in the same unit, in which labels have a scatter of about 1.
        weight: (S, k) of these stars; all are equal by default.
    """
    return _best(_costs(candidates, truth, weight).mean(axis=2))


def select_without(candidates: Candidates, truth: FloatArray, weight: FloatArray | None = None) -> IntArray:
    """Return the candidate (S, k) that would be selected if a star had no part in the selection.

    The selected candidate has small residuals for the stars that have selected it, by chance too. What this
    one predicts for the star has residuals like those of a new star, and intervals are calibrated on them.

    Args:
        candidates: as for `select`.
        truth: (S, k), as for `select`.
        weight: (S, k), as for `select`.
    """
    cost = _costs(candidates, truth, weight)
    with np.errstate(invalid="ignore"):  # of diverged candidates
        others = cost.sum(axis=2, keepdims=True) - cost
    return _best(others)


def _costs(candidates: Candidates, truth: FloatArray, weight: FloatArray | None) -> FloatArray:
    """Return the robust loss (S, C, k) of each star, times its weight."""
    with np.errstate(invalid="ignore", over="ignore"):
        cost: FloatArray = pseudo_huber(candidates.unseen - truth[:, None])
        if weight is not None:
            cost = cost * (weight / weight.mean(axis=1, keepdims=True))[:, None]
    return cost


def _best(cost: FloatArray) -> IntArray:
    """Return the candidate of the smallest cost (S, C, ...): the first one unless another is better."""
    cost = np.where(np.isfinite(cost), cost, np.inf)
    best: IntArray = np.where(cost.min(axis=1) < cost[:, 0], np.argmin(cost, axis=1), 0)
    return best
