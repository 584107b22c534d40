"""Selection of the adaptation strength by cross-validation, separately for each seed."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.train.losses import pseudo_huber
from specjax.typing import FloatArray, IntArray, Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Ways to adapt a head, for one scale of the tower's factors. Predictions are standardised labels.

    Attributes:
        tower: the scale of the tower's factors.
        predictions: (S, candidates, n) of all stars, from the fit to all training stars.
        out_of_fold: (S, candidates, a) of each training star, from the fit that left it out.
        amount: (candidates,) factor by which the head's low-rank update is multiplied.
        step: (candidates,) snapshot of the training, counted from 1; 0 for the head as it is.
        factors: the head's factors from the fit to all training stars, leaves (S, snapshots, ...).
    """

    tower: float
    predictions: FloatArray
    out_of_fold: FloatArray
    amount: FloatArray
    step: FloatArray
    factors: Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """The candidate selected for each seed.

    Attributes:
        chosen: "tower", "head" (amount) and "step", each (S,).
        factors: the head's factors, leaves (S, ...), already multiplied by the amount.
        predictions: (S, n) standardised labels of all stars.
    """

    chosen: dict[str, FloatArray]
    factors: Tree
    predictions: FloatArray


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


def select(
    candidates: Sequence[Candidates], truth: FloatArray, *, scale: FloatArray | None = None
) -> Selection:
    """Select the candidate with the smallest cross-validated loss for each seed.

    The head as it is remains unless a candidate is better.

    Args:
        candidates: for each scale of the tower's factors; the first candidate of each is the head as it is.
        truth: (S, a) standardised labels of the training stars.
        scale: (S,) scale of the tower's factors if it is fixed already; None selects it too.
    """
    tower = np.concatenate([np.full(len(c.amount), c.tower) for c in candidates])
    amount = np.concatenate([c.amount for c in candidates])
    step = np.concatenate([c.step for c in candidates])
    out_of_fold = np.concatenate([c.out_of_fold for c in candidates], axis=1)
    cost = pseudo_huber(out_of_fold - truth[:, None])  # (S, candidates, a)
    seed = np.arange(len(cost))
    # The head as it is: on the unadapted tower, or on the tower of the scale that is fixed.
    allowed = np.ones((len(cost), len(tower)), bool) if scale is None else tower == scale[:, None]
    default = allowed.argmax(axis=1)
    with np.errstate(invalid="ignore"):  # training that diverged leaves inf and NaN, which are never selected
        gain = (cost[seed, default][:, None] - cost).mean(axis=2)
    gain = np.where(allowed & np.isfinite(gain), gain, -np.inf)
    pick = np.argmax(gain, axis=1)
    pick = np.where(gain[seed, pick] > 0, pick, default)
    return Selection(
        {"tower": tower[pick], "head": amount[pick], "step": step[pick]},
        _selected_factors(candidates, pick),
        np.concatenate([c.predictions for c in candidates], axis=1)[seed, pick],
    )


def _selected_factors(candidates: Sequence[Candidates], pick: IntArray) -> Tree:
    first = candidates[0]
    if not first.factors:
        return {}
    which, inner = np.divmod(pick, len(first.amount))
    step = np.maximum(first.step[inner].astype(int) - 1, 0)
    seeds = np.arange(len(pick))
    leaves = [jax.tree.map(np.asarray, c.factors) for c in candidates]
    selected = jax.tree.map(lambda *each: np.stack(each)[which, seeds, step], *leaves)
    return lora.scale_updates(selected, jnp.asarray(first.amount[inner]))
