"""Adaptation of a foundation to a target survey: configurations, their stages, and how far they go.

A configuration is a set of LoRA groups. Their stages run in this order, each as one program over all seeds:

| group        | objective                                        | data                        |
|--------------|--------------------------------------------------|-----------------------------|
| lora1        | masked modelling                                 | unlabelled target spectra   |
| lora3        | contrastive, against Gaia XP of the same stars   | unlabelled pairs            |
| lora2, lora4 | robust regression of the label                   | labelled training stars     |

Adapting to sixty stars can hurt as easily as help. How far to go is chosen for each seed by cross-validation
within its training stars: how long the head trains, and by what factor the low-rank updates of the head and
of the towers are shrunk, with "not at all" among the choices. Validation and test stars take no part in it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from specjax.errors import ConfigError, ModelError
from specjax.foundation import Foundation
from specjax.models.inference import NEUTRAL_STATS, Summary
from specjax.targets import Splits, Target
from specjax.train import programs
from specjax.train.choice import Candidates, Choice, choose, fold_of, left_out_of
from specjax.train.configurations import parse_configuration
from specjax.train.ensemble import fit
from specjax.train.optimizer import GroupSchedule
from specjax.train.towers import Towers, UnlabelledStage

Tree = Any
FloatArray = NDArray[np.float64]

GROUPS = {"mlp1": "lora2", "mlp2": "lora4"}  # which factors adapt a head
KINDS = {"mlp1": "mean", "mlp2": "projected"}  # and what it reads
DENSITY_WIDTH = 0.25  # of the Gaussian by which training stars are counted, in standardised labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadStage:
    """LoRA2 or LoRA4: full batches of all training stars; the state is kept `snapshots` times."""

    steps: int = 80
    snapshots: int = 4
    schedule: GroupSchedule = GroupSchedule(learning_rate=1e-3, weight_decay=0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Numbers of an adaptation; the defaults were chosen on validation stars (see docs/adaptation.md).

    caution is the number of standard errors by which cross-validation must prefer adapting to not adapting.
    A training star counts with the density of labels around it to the power of -balance: with 0 all count
    alike, with 1 every stretch of labels does.
    """

    seeds: int = 16
    train: int = 60
    validate: int = 10
    folds: int = 5
    lora1: UnlabelledStage = UnlabelledStage(steps=20, batch=16, schedule=GroupSchedule(learning_rate=1e-3))
    lora3: UnlabelledStage = UnlabelledStage(steps=30, batch=64, schedule=GroupSchedule(learning_rate=1e-3))
    head: HeadStage = HeadStage()
    head_shrinkage: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    tower_shrinkage: tuple[float, ...] = (0.0, 1.0)
    caution: float = 0.0
    balance: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adaptation:
    """What one configuration gave, for S seeds.

    Attributes:
        configuration: its name.
        predictions: (S, n) the label of all labelled stars, in physical units.
        adapters: the small tree of factors, each leaf (S, ...); {} for zero-shot.
        chosen: for each head {"tower": (S,), "head": (S,), "step": (S,)}, what cross-validation chose.
    """

    configuration: str
    predictions: FloatArray
    adapters: Tree
    chosen: dict[str, dict[str, FloatArray]]


class Adapter:
    """Runs configurations on one target; what several of them share is computed once."""

    def __init__(
        self,
        model: Foundation,
        target: Target,
        splits: Splits,
        config: AdaptConfig,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Put the target's spectra on the device.

        Raises:
            ConfigError: the model does not predict the target's label.
        """
        if target.label not in model.config.labels:
            raise ConfigError(f"the model predicts {', '.join(model.config.labels)}, not {target.label!r}")
        self.model, self.target, self.splits, self.config = model, target, splits, config
        self.column = model.config.labels.index(target.label)
        self.keys = _seed_keys(jnp.asarray(splits.seeds))
        stages = {"lora1": config.lora1, "lora3": config.lora3}
        self.towers = Towers(model, target, stages, self.keys, say)
        self._on_base: dict[tuple[str, str | None], Candidates] = {}

    def run(self, configuration: str) -> Adaptation:
        """Run one configuration for all seeds.

        Raises:
            ConfigError: no such configuration.
            ModelError: the model lacks a part that it needs.
            DataError: the target lacks the unlabelled spectra or Gaia XP partners that it needs.
        """
        groups, heads = parse_configuration(configuration)
        self._require(groups, heads)
        towers = self.towers.factors(tuple(group for group in groups if group in ("lora1", "lora3")))
        adapters: Tree = {}
        picked: dict[str, Choice] = {}
        scale = None
        for head in reversed(heads):  # they share the towers: the last head chooses their scale
            group = GROUPS[head] if GROUPS[head] in groups else None
            picked[head] = self._adapt_head(head, group, towers, scale)
            adapters = {**adapters, **picked[head].factors}
            scale = picked[head].chosen["tower"]
        if towers:
            adapters = {**adapters, **programs.scaled(towers, jnp.asarray(scale))}
        return Adaptation(
            configuration=configuration,
            predictions=np.mean([self._physical(h, one.predictions) for h, one in picked.items()], axis=0),
            adapters=jax.tree.map(np.asarray, adapters),
            chosen={head: picked[head].chosen for head in heads},
        )

    def _require(self, groups: tuple[str, ...], heads: tuple[str, ...]) -> None:
        params = self.model.params
        for head in heads:
            if head not in params or (head == "mlp2" and "projection" not in params["lamost"]):
                raise ModelError(f"this model has no head {head!r}, or nothing for it to read")
        if "lora3" in groups and "projection" not in params.get("gaia_xp", {}):
            raise ModelError("this model has no Gaia XP tower, which LoRA3 aligns with")

    def _adapt_head(self, head: str, group: str | None, towers: Tree, scale: FloatArray | None) -> Choice:
        """Adapt one head and choose; scale (S,) is that of the towers where it is settled."""
        seeds = len(self.splits)
        offered = (0.0, *(s for s in self.config.tower_shrinkage if s > 0)) if towers else (0.0,)
        candidates = [self._head_candidates(head, group, towers, value) for value in offered]
        if group is None and not towers:
            none = {name: np.zeros(seeds) for name in ("tower", "head", "step")}
            return Choice(none, {}, candidates[0].predictions[:, 0])
        truth = np.asarray(self._standardised(head))[self.splits.train]
        return choose(candidates, truth, self._weights(head), scale=scale, caution=self.config.caution)

    def _features(self, head: str, towers: Tree, scale: float) -> jax.Array:
        """Standardised features (S, n, d) of the labelled stars; (1, n, d) if they are the base model's."""
        stats = self._stats(head)
        features = self.towers.features(KINDS[head], towers, scale)
        return (features - stats["feature_mean"]) / stats["feature_std"]

    def _head_candidates(self, head: str, group: str | None, towers: Tree, scale: float) -> Candidates:
        """Adapt a head on towers shrunk by `scale`; on those as they are, once for all configurations."""
        if scale == 0 and (head, group) in self._on_base:
            return self._on_base[head, group]
        features = self._features(head, towers, scale)
        features = jnp.broadcast_to(features, (len(self.splits), *features.shape[1:]))
        candidates = self._candidates(head, group, features, scale)
        if scale == 0:
            self._on_base[head, group] = candidates
        return candidates

    def _candidates(self, head: str, group: str | None, features: jax.Array, tower: float) -> Candidates:
        rows = self.splits.train
        none = self._predict(head, None, {}, features)  # (S, n)
        base = none[:, None], np.take_along_axis(none, rows, axis=1)[:, None]
        if group is None:  # the same head in every fold
            return Candidates(tower, *base, np.zeros(1), np.zeros(1), {})
        seeds, runs = len(features), self.config.folds + 1
        factors = self._fit_head(head, group, self._training_data(head, features), runs)
        factors = jax.tree.map(lambda leaf: leaf.reshape(seeds, runs, *leaf.shape[1:]), factors)
        whole = jax.tree.map(lambda leaf: leaf[:, 0], factors)
        shrinkage = np.array([s for s in self.config.head_shrinkage if s > 0])
        steps = self.config.head.snapshots
        parts = [base]
        for step in range(steps):
            state = jax.tree.map(lambda leaf, step=step: leaf[:, :, step], factors)
            parts += [self._shrunk_predictions(head, group, state, features, value) for value in shrinkage]
        amount = np.concatenate([[0.0], np.tile(shrinkage, steps)])
        step_of = np.concatenate([[0.0], np.repeat(np.arange(1.0, steps + 1), len(shrinkage))])
        predictions, out_of_fold = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return Candidates(tower, predictions, out_of_fold, amount, step_of, whole)

    def _shrunk_predictions(
        self, head: str, group: str, factors: Tree, features: jax.Array, by: float
    ) -> tuple[FloatArray, FloatArray]:
        """Predict with factors (S, runs, ...) times `by`: all stars (S, 1, n), and out of fold (S, 1, a).

        A fold's run predicts the training stars that it did not see, and no others.
        """
        rows, folds, seeds = self.splits.train, self.config.folds, len(features)
        left_out = left_out_of(rows.shape[1], folds)  # (folds, b)
        unseen = features[np.arange(seeds)[:, None, None], rows[:, left_out]]  # (S, folds, b, d)
        whole = jax.tree.map(lambda leaf: leaf[:, 0], factors)
        parts = jax.tree.map(lambda leaf: leaf[:, 1:].reshape(-1, *leaf.shape[2:]), factors)
        whole = programs.scaled(whole, jnp.full(seeds, by))
        parts = programs.scaled(parts, jnp.full(seeds * folds, by))
        predictions = self._predict(head, group, whole, features)
        parted = self._predict(head, group, parts, unseen.reshape(-1, *unseen.shape[2:]))
        star = np.arange(rows.shape[1])
        out_of_fold = parted.reshape(seeds, *left_out.shape)[:, star % folds, star // folds]
        return predictions[:, None], out_of_fold[:, None]

    def _training_data(self, head: str, features: jax.Array) -> Tree:
        """Each run's x, y and weight, leaves (S x runs, a, ...): all training stars, then all but a fold."""
        rows, folds = self.splits.train, self.config.folds
        fold = fold_of(rows.shape[1], folds)
        used = np.stack([np.ones(len(fold))] + [fold != k for k in range(folds)])  # (runs, a)
        weight = self._weights(head)[:, None] * used
        own = {
            "x": jnp.take_along_axis(features, jnp.asarray(rows)[..., None], axis=1),
            "y": self._standardised(head)[jnp.asarray(rows)],
        }
        flat = {name: jnp.repeat(value, folds + 1, axis=0) for name, value in own.items()}
        return {**flat, "weight": jnp.asarray(weight.reshape(-1, len(fold)), jnp.float32)}

    def _weights(self, head: str) -> FloatArray:
        """How much each training star counts, (S, a), 1 in the mean."""
        labels = np.asarray(self._standardised(head), np.float64)[self.splits.train]
        apart = (labels[:, :, None] - labels[:, None]) / DENSITY_WIDTH
        weight = np.exp(-0.5 * apart**2).sum(axis=2) ** -self.config.balance
        return np.asarray(weight / weight.mean(axis=1, keepdims=True))

    def _fit_head(self, head: str, group: str, data: Tree, runs: int) -> Tree:
        """Train S x runs copies of the head's factors; leaves (S x runs, snapshots, ...)."""
        stage = self.config.head
        result = fit(
            programs.head_loss(self.model.config, head, group, self.column),
            programs.optimizer(group, stage.schedule, stage.steps),
            frozen={head: self.model.params[head]},
            trainable=jax.tree.map(lambda leaf: jnp.repeat(leaf, runs, axis=0), self.towers.start(group)),
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

    def _physical(self, head: str, standardised: FloatArray) -> FloatArray:
        mean, std = self._label_scale(head)
        return standardised * std + mean


@jax.jit
def _seed_keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)


def predict_with(
    model: Foundation,
    configuration: str,
    adapters: Tree,
    label: str,
    flux: NDArray[Any],
    ivar: NDArray[Any] | None,
    mask: NDArray[Any] | None,
    summary: Summary | None = None,
) -> FloatArray:
    """Predict a label (S, n) of spectra on the LAMOST grid with the factors (S, ...) of a configuration.

    `summary` is what `model.summarise` gave for the same spectra, where that is at hand already.
    """
    each = [
        model.predict_seeds(flux, head, adapters=adapters, ivar=ivar, mask=mask, summary=summary)[label]
        for head in parse_configuration(configuration)[1]
    ]
    return np.mean(np.asarray(each, np.float64), axis=0)
