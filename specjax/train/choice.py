"""How far to adapt a head: the candidates, and the choice among them by cross-validation, seed by seed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from specjax.train.programs import scaled

Tree = Any
FloatArray = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Ways to adapt a head at one scale of the towers' factors.

    predictions (S, folds + 1, candidates, n) in standardised units, of the run on all training stars first;
    amount and step (candidates,); factors are the head's, of that first run, leaves (S, snapshots, ...).
    """

    tower: float
    predictions: FloatArray
    amount: FloatArray
    step: FloatArray
    factors: Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What each seed took: tower, amount and step (S,), the head's factors and predictions (S, n)."""

    chosen: dict[str, FloatArray]
    factors: Tree
    predictions: FloatArray


def fold_of(count: int, folds: int) -> NDArray[np.int64]:
    """Return the fold of each of `count` training stars, which are in random order already."""
    return np.arange(count) % folds


def choose(
    candidates: Sequence[Candidates],
    rows: NDArray[np.int64],
    truth: FloatArray,
    weight: FloatArray,
    *,
    scale: FloatArray | None = None,
    caution: float = 0.0,
) -> Choice:
    """Pick each seed's candidate with the best cross-validated loss, none unless it is clearly better.

    Args:
        candidates: at each scale of the towers; the first candidate of each is the head as it is.
        rows: (S, a) training stars.
        truth: (S, a) their standardised labels.
        weight: (S, a) how much each counts.
        scale: (S,) the towers' scale where it is settled; None lets it be chosen too.
        caution: standard errors by which adapting must be better than not adapting.
    """
    folds = candidates[0].predictions.shape[1] - 1
    tower = np.concatenate([np.full(len(c.amount), c.tower) for c in candidates])
    amount = np.concatenate([c.amount for c in candidates])
    step = np.concatenate([c.step for c in candidates])
    predictions = np.concatenate([c.predictions for c in candidates], axis=2)
    seeds, one = np.arange(len(rows))[:, None], np.arange(len(rows))
    out_of_fold = predictions[seeds, 1 + fold_of(rows.shape[1], folds)[None], :, rows]  # (S, a, candidates)
    cost = weight[..., None] * _robust(out_of_fold - truth[..., None])
    # The head as it is: on the towers as they are, or on those of the scale that is settled.
    allowed = np.ones((len(rows), len(tower)), bool) if scale is None else tower == scale[:, None]
    default = allowed.argmax(axis=1)
    with np.errstate(invalid="ignore"):  # training that diverged leaves inf and NaN, which are not picked
        gain = cost[one, :, default][..., None] - cost
        mean = gain.mean(axis=1)
        error = gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1])
    mean = np.where(allowed & np.isfinite(mean), mean, -np.inf)
    pick = np.argmax(mean, axis=1)
    pick = np.where(mean[one, pick] > caution * error[one, pick], pick, default)
    return Choice(
        {"tower": tower[pick], "head": amount[pick], "step": step[pick]},
        _picked_factors(candidates, pick),
        predictions[one, 0, pick],
    )


def _picked_factors(candidates: Sequence[Candidates], pick: NDArray[np.int64]) -> Tree:
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
