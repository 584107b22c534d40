"""How far to adapt a head: the candidates, and the choice among them by cross-validation, seed by seed."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax.adapt.programs import scaled
from specjax.typing import FloatArray, IntArray, Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Ways to adapt a head at one scale of the towers' factors.

    In standardised units, predictions (S, candidates, n) of all stars by the run on all training stars, and
    out_of_fold (S, candidates, a) of each training star by the run that did not see it; amount and step
    (candidates,); factors are the head's, of the run on all training stars, leaves (S, snapshots, ...).
    """

    tower: float
    predictions: FloatArray
    out_of_fold: FloatArray
    amount: FloatArray
    step: FloatArray
    factors: Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What each seed took: tower, amount and step (S,), the head's factors and predictions (S, n)."""

    chosen: dict[str, FloatArray]
    factors: Tree
    predictions: FloatArray


def fold_of(count: int, folds: int) -> IntArray:
    """Return the fold of each of `count` training stars, which are in random order already."""
    return np.arange(count) % folds


def left_out_of(count: int, folds: int) -> IntArray:
    """Return the stars of each fold, (folds, b): star s is at [s % folds, s // folds].

    Places that no star has, where folds differ in size, hold the last star.
    """
    places = np.arange(folds)[:, None] + folds * np.arange(-(-count // folds))
    return np.minimum(places, count - 1)


def choose(
    candidates: Sequence[Candidates],
    truth: FloatArray,
    weight: FloatArray,
    *,
    scale: FloatArray | None = None,
    caution: float = 0.0,
) -> Choice:
    """Pick each seed's candidate with the best cross-validated loss, none unless it is clearly better.

    Args:
        candidates: at each scale of the towers; the first candidate of each is the head as it is.
        truth: (S, a) the standardised labels of the training stars.
        weight: (S, a) how much each counts.
        scale: (S,) the towers' scale where it is settled; None lets it be chosen too.
        caution: standard errors by which adapting must be better than not adapting.
    """
    tower = np.concatenate([np.full(len(c.amount), c.tower) for c in candidates])
    amount = np.concatenate([c.amount for c in candidates])
    step = np.concatenate([c.step for c in candidates])
    out_of_fold = np.concatenate([c.out_of_fold for c in candidates], axis=1)
    cost = weight[:, None] * _robust(out_of_fold - truth[:, None])  # (S, candidates, a)
    one = np.arange(len(cost))
    # The head as it is: on the towers as they are, or on those of the scale that is settled.
    allowed = np.ones((len(cost), len(tower)), bool) if scale is None else tower == scale[:, None]
    default = allowed.argmax(axis=1)
    with np.errstate(invalid="ignore"):  # training that diverged leaves inf and NaN, which are not picked
        gain = cost[one, default][:, None] - cost
        mean = gain.mean(axis=2)
        error = gain.std(axis=2, ddof=1) / np.sqrt(gain.shape[2])
    mean = np.where(allowed & np.isfinite(mean), mean, -np.inf)
    pick = np.argmax(mean, axis=1)
    pick = np.where(mean[one, pick] > caution * error[one, pick], pick, default)
    return Choice(
        {"tower": tower[pick], "head": amount[pick], "step": step[pick]},
        _picked_factors(candidates, pick),
        np.concatenate([c.predictions for c in candidates], axis=1)[one, pick],
    )


def _picked_factors(candidates: Sequence[Candidates], pick: IntArray) -> Tree:
    first = candidates[0]
    if not first.factors:
        return {}
    which, inner = np.divmod(pick, len(first.amount))
    step = np.maximum(first.step[inner].astype(int) - 1, 0)
    seeds = np.arange(len(pick))
    leaves = [jax.tree.map(np.asarray, c.factors) for c in candidates]
    picked = jax.tree.map(lambda *each: np.stack(each)[which, seeds, step], *leaves)
    return scaled(picked, jnp.asarray(first.amount[inner]))


def _robust(residual: FloatArray, delta: float = 0.3) -> FloatArray:
    return delta**2 * (np.sqrt(1 + (residual / delta) ** 2) - 1)
