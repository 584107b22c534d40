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
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from specjax import lora
from specjax.config import LORA_GROUPS, ModelConfig
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation import Foundation
from specjax.models.inference import NEUTRAL_STATS
from specjax.models.label_head import LabelHead
from specjax.models.layers import tokenise
from specjax.models.specclip import SpecCLIP
from specjax.models.xp_autoencoder import xp_vector
from specjax.targets import Grid, Splits, Target
from specjax.train import losses
from specjax.train.ensemble import Loss, fit
from specjax.train.optimizer import GroupSchedule, make_optimizer

Tree = Any
FloatArray = NDArray[np.float64]

CONFIGURATIONS = ("zero-shot-mlp1", "lora2", "lora1+lora2", "zero-shot-mlp2", "lora4", "lora1+lora3+lora4")
"""The six rows of the paper's table."""

ROWS_AT_ONCE = 32  # spectra that each seed embeds at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabelledStage:
    """LoRA1 or LoRA3: so many steps on batches of unlabelled spectra."""

    steps: int
    batch: int
    schedule: GroupSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadStage:
    """LoRA2 or LoRA4: full batches of all training stars; the state is kept `snapshots` times."""

    steps: int = 80
    snapshots: int = 4
    schedule: GroupSchedule = GroupSchedule(learning_rate=1e-3, weight_decay=0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Numbers of an adaptation; the defaults were chosen on validation stars (see docs/adaptation.md)."""

    seeds: int = 16
    train: int = 60
    validate: int = 10
    folds: int = 5
    lora1: UnlabelledStage = UnlabelledStage(steps=20, batch=16, schedule=GroupSchedule(learning_rate=1e-3))
    lora3: UnlabelledStage = UnlabelledStage(steps=30, batch=64, schedule=GroupSchedule(learning_rate=1e-3))
    head: HeadStage = HeadStage()
    head_shrinkage: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    tower_shrinkage: tuple[float, ...] = (0.0, 1.0)
    caution: float = 0.0  # standard errors by which cross-validation must prefer adapting to not adapting


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


def parse_configuration(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (groups, heads) of a configuration such as "lora1+lora2" or "zero-shot-mlp2".

    The label comes from MLP1 where LoRA2 is adapted (or LoRA1 alone), from MLP2 where LoRA3 or LoRA4 is, and
    from the mean of both where both are.

    Raises:
        ConfigError: a name that is neither.
    """
    if name in ("zero-shot-mlp1", "zero-shot-mlp2"):
        return (), (name.removeprefix("zero-shot-"),)
    groups = tuple(name.split("+"))
    if not set(groups) <= set(LORA_GROUPS) or len(set(groups)) < len(groups):
        raise ConfigError(
            f"no configuration {name!r}: zero-shot-mlp1, zero-shot-mlp2 or any of {', '.join(LORA_GROUPS)}"
            " joined by +"
        )
    second = "lora3" in groups or "lora4" in groups
    heads = (("mlp1",) if "lora2" in groups or not second else ()) + (("mlp2",) if second else ())
    return tuple(sorted(groups)), heads


def zero_shot_of(name: str) -> str:
    """Return the zero-shot configuration that a row's gain is against: of its head, MLP2 where both."""
    return f"zero-shot-{parse_configuration(name)[1][-1]}"


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
        self.model, self.target, self.splits, self.config, self.say = model, target, splits, config, say
        self.column = model.config.labels.index(target.label)
        self.flux, self.valid = _prepared(model, target.labelled)
        self._trained: dict[tuple[str, ...], Tree] = {}
        self.keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(
            jnp.arange(len(splits))
        )

    def run(self, configuration: str) -> Adaptation:
        """Run one configuration for all seeds.

        Raises:
            ConfigError: no such configuration.
            ModelError: the model lacks a part that it needs.
            DataError: the target lacks the unlabelled spectra or Gaia XP partners that it needs.
        """
        groups, heads = parse_configuration(configuration)
        self._require(groups, heads)
        towers = self._towers(tuple(group for group in groups if group in ("lora1", "lora3")))
        adapters: Tree = {}
        chosen, predictions = {}, []
        scale = None
        for head in reversed(heads):  # they share the towers: the last head chooses their scale
            group = {"mlp1": "lora2", "mlp2": "lora4"}[head]
            picked, factors, predicted = self._adapt_head(
                head, group if group in groups else None, towers, scale
            )
            predictions.append(predicted)
            chosen[head] = picked
            adapters = {**adapters, **factors}
            scale = picked["tower"]
        if towers:
            adapters = {**adapters, **scaled(towers, jnp.asarray(scale))}
        return Adaptation(
            configuration=configuration,
            predictions=np.mean(predictions, axis=0),
            adapters=jax.tree.map(np.asarray, adapters),
            chosen={head: chosen[head] for head in heads},
        )

    def _require(self, groups: tuple[str, ...], heads: tuple[str, ...]) -> None:
        params = self.model.params
        for head in heads:
            if head not in params or (head == "mlp2" and "projection" not in params["lamost"]):
                raise ModelError(f"this model has no head {head!r}, or nothing for it to read")
        if "lora3" in groups and "projection" not in params.get("gaia_xp", {}):
            raise ModelError("this model has no Gaia XP tower, which LoRA3 aligns with")

    # --- the towers: LoRA1 and LoRA3 on unlabelled spectra

    def forget(self) -> None:
        """Drop the trained towers, so that the next run trains them again."""
        self._trained.clear()

    def _towers(self, groups: tuple[str, ...]) -> Tree:
        """Train the factors of the towers, each leaf (S, ...); later groups see the earlier ones adapted."""
        if not groups:
            return {}
        if groups not in self._trained:
            earlier, group = self._towers(groups[:-1]), groups[-1]
            stage = {"lora1": self._masked_modelling, "lora3": self._contrastive}[group]
            self.say(f"{self.target.name}: {group} on {len(self.target.unlabelled)} unlabelled spectra")
            self._trained[groups] = lora.combine(earlier, stage(earlier))
        return self._trained[groups]

    def _start(self, group: str) -> Tree:
        config = {group: self.model.config.loras[group]}
        tag = LORA_GROUPS.index(group)
        return jax.vmap(
            lambda key: lora.init_adapters(jax.random.fold_in(key, tag), self.model.params, config)
        )(self.keys)

    def _masked_modelling(self, earlier: Tree) -> Tree:
        del earlier  # LoRA1 comes first
        config = self.model.config
        flux, valid = self._unlabelled
        loss = _masked_modelling_loss(config, self.config.lora1.batch)
        frozen = {"lamost": self.model.params["lamost"]}
        return self._fit(
            "lora1", loss, self.config.lora1, frozen, tokenise(flux, config.specformer, valid), {}
        )

    def _contrastive(self, earlier: Tree) -> Tree:
        stage = self.config.lora3
        z_xp = self._xp_projected
        flux, valid = self._unlabelled
        paired = np.flatnonzero(np.asarray(self.target.unlabelled.xp_valid).any(axis=1))
        tokens = self._embed("tokens", earlier, flux[paired], valid[paired])
        shared, own = {"z_xp": z_xp[paired]}, {}
        if earlier:
            own["tokens"] = tokens  # (S, m, t, d)
        else:
            shared["tokens"] = tokens[0]  # the base model's, (m, t, d)
        loss = _contrastive_loss(self.model.config, min(stage.batch, len(paired)))
        # The backbone has run already: its place in the tree is empty.
        frozen = {"lamost": {"backbone": {}, "projection": self.model.params["lamost"]["projection"]}}
        return self._fit("lora3", loss, stage, frozen, shared, own)

    def _fit(
        self, group: str, loss: Any, stage: UnlabelledStage, frozen: Tree, shared: Tree, own: Tree
    ) -> Tree:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 10 + LORA_GROUPS.index(group)))(self.keys)
        result = fit(
            loss,
            _optimizer(group, stage.schedule, stage.steps),
            frozen=frozen,
            trainable=self._start(group),
            shared=shared,
            per_seed=own,
            keys=keys,
            steps=stage.steps,
        )
        self.say(f"{self.target.name}: {group} loss {float(result.loss.mean()):.3f}")
        return jax.tree.map(lambda leaf: leaf[:, -1], result.snapshots)

    @functools.cached_property
    def _unlabelled(self) -> tuple[jax.Array, jax.Array]:
        if len(self.target.unlabelled) < 2:
            raise DataError(
                f"{self.target.name}: LoRA1 and LoRA3 need unlabelled spectra, and there are none"
            )
        return _prepared(self.model, self.target.unlabelled)

    @functools.cached_property
    def _xp_projected(self) -> jax.Array:
        grid = self.target.unlabelled
        if grid.xp_flux is None or grid.xp_valid is None or not grid.xp_valid.any():
            raise DataError(f"{self.target.name}: LoRA3 needs Gaia XP spectra of the unlabelled stars")
        network = SpecCLIP(self.model.config)
        vector = xp_vector(jnp.asarray(grid.xp_flux, jnp.float32), jnp.asarray(grid.xp_valid))
        return network.apply({"params": self.model.params}, vector, method=lambda model, x: model.gaia_xp(x))

    # --- features: what a head reads, for every seed

    def _features(self, head: str, towers: Tree, scale: float) -> jax.Array:
        """Standardised features (S, n, d) of the labelled stars; (1, n, d) if they are the base model's."""
        kind = {"mlp1": "mean", "mlp2": "projected"}[head]
        factors = scaled(towers, jnp.full(len(self.splits), scale)) if towers and scale else {}
        stats = self._stats(head)
        features = self._embed(kind, factors, self.flux, self.valid)
        return (features - stats["feature_mean"]) / stats["feature_std"]

    def _embed(self, kind: str, factors: Tree, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Run the LAMOST tower with each seed's factors: (S, n, ...), or (1, n, ...) without factors."""
        program = _tower_program(self.model.config, kind, tuple(_groups(factors)))
        frozen = {"lamost": self.model.params["lamost"]}
        padded = -len(flux) % ROWS_AT_ONCE
        flux = jnp.pad(flux, ((0, padded), (0, 0)), constant_values=1)
        valid = jnp.pad(valid, ((0, padded), (0, 0)), constant_values=True)
        if not factors:
            factors = {"none": jnp.zeros(1)}
        parts = [
            program(frozen, factors, flux[start : start + ROWS_AT_ONCE], valid[start : start + ROWS_AT_ONCE])
            for start in range(0, len(flux), ROWS_AT_ONCE)
        ]
        whole = jnp.concatenate(parts, axis=1)
        return whole[:, : whole.shape[1] - padded]

    # --- the heads: LoRA2 and LoRA4 on labelled stars

    def _adapt_head(
        self, head: str, group: str | None, towers: Tree, scale: FloatArray | None
    ) -> tuple[dict[str, FloatArray], Tree, FloatArray]:
        """Adapt one head and choose; returns (what was chosen, its factors (S, ...), predictions (S, n)).

        scale (S,) is that of the towers where it is settled, None where it is to be chosen.
        """
        seeds = len(self.splits)
        offered = (0.0, *(s for s in self.config.tower_shrinkage if s > 0)) if towers else (0.0,)
        candidates: list[_Candidates] = []
        for value in offered:
            features = self._features(head, towers, value)
            features = jnp.broadcast_to(features, (seeds, *features.shape[1:]))
            candidates.append(self._head_candidates(head, group, features, value))
        if group is None and not towers:
            predictions = candidates[0].predictions[:, 0, 0]
            return _no_choice(seeds), {}, self._physical(head, predictions)
        return self._choose(head, candidates, scale)

    def _head_candidates(
        self, head: str, group: str | None, features: jax.Array, tower: float
    ) -> "_Candidates":
        if group is None:
            predicted = self._predict(head, None, {}, jnp.repeat(features, 1, axis=0))[:, None, None]
            every = np.repeat(predicted, self.config.folds + 1, axis=1)  # the same head in every fold
            return _Candidates(tower, every, np.zeros(1), np.zeros(1), {})
        rows, weights = self._folds
        own = {
            "x": jax.vmap(lambda x, r: x[r])(features, rows),
            "y": self._standardised(head)[rows],
        }
        runs = self.config.folds + 1
        flat = {name: jnp.repeat(value, runs, axis=0) for name, value in own.items()}
        flat["weight"] = weights.reshape(-1, weights.shape[-1])
        factors = self._fit_head(head, group, flat, runs)
        shrinkage = np.array([s for s in self.config.head_shrinkage if s > 0])
        none = self._predict(head, None, {}, features)
        parts = [np.broadcast_to(none[:, None, None], (len(features), runs, 1, none.shape[1]))]
        spread = jnp.repeat(features, runs, axis=0)
        steps = self.config.head.snapshots
        for step in range(steps):
            state = jax.tree.map(lambda leaf, step=step: leaf[:, step], factors)
            for value in shrinkage:
                predicted = self._predict(head, group, scaled(state, jnp.full(len(spread), value)), spread)
                parts.append(predicted.reshape(len(features), runs, 1, -1))
        amount = np.concatenate([[0.0], np.tile(shrinkage, steps)])
        step_of = np.concatenate([[0], np.repeat(np.arange(1, steps + 1), len(shrinkage))])
        whole = jax.tree.map(lambda leaf: leaf.reshape(len(features), runs, *leaf.shape[1:])[:, 0], factors)
        return _Candidates(tower, np.concatenate(parts, axis=2), amount, step_of.astype(float), whole)

    def _fit_head(self, head: str, group: str, data: Tree, runs: int) -> Tree:
        """Train S x runs copies of the head's factors; leaves (S x runs, snapshots, ...)."""
        stage = self.config.head
        start = jax.tree.map(lambda leaf: jnp.repeat(leaf, runs, axis=0), self._start(group))
        keys = jnp.repeat(self.keys, runs, axis=0)
        result = fit(
            _head_loss(self.model.config, head, group, self.column),
            _optimizer(group, stage.schedule, stage.steps),
            frozen={head: self.model.params[head]},
            trainable=start,
            shared=self.model.variables["batch_stats"][head],
            per_seed=data,
            keys=keys,
            steps=stage.steps,
            snapshots=stage.snapshots,
        )
        return result.snapshots

    def _predict(self, head: str, group: str | None, factors: Tree, features: jax.Array) -> FloatArray:
        """Standardised label (runs, n) from features (runs, n, d) with each run's factors."""
        program = _head_program(self.model.config, head, group)
        frozen = {head: self.model.params[head]}
        stats = self.model.variables["batch_stats"][head]
        return np.asarray(program(frozen, factors, stats, features)[..., self.column], np.float64)

    @functools.cached_property
    def _folds(self) -> tuple[jax.Array, jax.Array]:
        """Training rows (S, a) and weights (S, folds + 1, a): all of them, then all but one fold each."""
        rows = self.splits.train
        fold = np.arange(rows.shape[1]) % self.config.folds  # rows are in random order already
        weights = np.stack([np.ones(len(fold))] + [fold != k for k in range(self.config.folds)])
        weights = np.broadcast_to(weights, (len(rows), *weights.shape))
        return jnp.asarray(rows), jnp.asarray(weights, jnp.float32)

    def _choose(
        self, head: str, candidates: "list[_Candidates]", scale: FloatArray | None
    ) -> tuple[dict[str, FloatArray], Tree, FloatArray]:
        """Pick each seed's candidate with the best cross-validated loss, none unless it is clearly better."""
        rows = self.splits.train
        fold = np.arange(rows.shape[1]) % self.config.folds
        truth = np.asarray(self._standardised(head))[rows]  # (S, a)
        tower = np.concatenate([np.full(len(c.amount), c.tower) for c in candidates])
        amount = np.concatenate([c.amount for c in candidates])
        step = np.concatenate([c.step for c in candidates])
        # (S, folds + 1, candidates, n)
        predictions = np.concatenate([c.predictions for c in candidates], axis=2)
        seeds = np.arange(len(rows))[:, None]
        out_of_fold = predictions[seeds, 1 + fold[None], :, rows]  # (S, a, candidates)
        cost = _robust(out_of_fold - truth[..., None])
        one = np.arange(len(rows))
        # The head as it is: on the towers as they are, or on those of the scale that is settled.
        allowed = np.ones((len(rows), len(tower)), bool) if scale is None else tower == scale[:, None]
        default = allowed.argmax(axis=1)
        with np.errstate(invalid="ignore"):  # training that diverged leaves inf and NaN, which are not picked
            gain = cost[one, :, default][..., None] - cost
            mean = gain.mean(axis=1)
            error = gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1])
        mean = np.where(allowed & np.isfinite(mean), mean, -np.inf)
        pick = np.argmax(mean, axis=1)
        pick = np.where(mean[one, pick] > self.config.caution * error[one, pick], pick, default)
        chosen = {"tower": tower[pick], "head": amount[pick], "step": step[pick]}
        factors = self._picked_factors(candidates, pick)
        return chosen, factors, self._physical(head, predictions[one, 0, pick])

    def _picked_factors(self, candidates: "list[_Candidates]", pick: NDArray[np.int64]) -> Tree:
        if not candidates[0].factors:
            return {}
        size = len(candidates[0].amount)
        which, inner = np.divmod(pick, size)
        first = candidates[0]
        step = np.maximum(first.step[inner].astype(int) - 1, 0)
        seeds = np.arange(len(pick))
        leaves = [jax.tree.map(np.asarray, c.factors) for c in candidates]
        picked = jax.tree.map(lambda *each: np.stack(each)[which, seeds, step], *leaves)
        return scaled(picked, jnp.asarray(first.amount[inner]))

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


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidates:
    """Ways to adapt a head at one scale of the towers' factors.

    predictions (S, folds + 1, candidates, n) in standardised units; amount and step (candidates,); factors
    are the head's, of the run on all training stars, leaves (S, snapshots, ...).
    """

    tower: float
    predictions: FloatArray
    amount: FloatArray
    step: FloatArray
    factors: Tree


@jax.jit
def scaled(factors: Tree, scale: jax.Array) -> Tree:
    """Shrink low-rank updates: lora_b of every layer times scale (S,), one number a seed."""

    def shrink(path: Any, leaf: jax.Array) -> jax.Array:
        by = jnp.reshape(scale, (-1,) + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
        scaled_leaf = leaf * by if path[-1].key == "lora_b" else leaf
        # By nothing is nothing, also where training diverged.
        return jnp.where((by == 0) & ~jnp.isfinite(scaled_leaf), 0, scaled_leaf)

    return jax.tree_util.tree_map_with_path(shrink, factors)


# Losses and optimizers are made once for their arguments: `ensemble.fit` compiles once for each of them.


@functools.cache
def _optimizer(group: str, schedule: GroupSchedule, steps: int) -> optax.GradientTransformation:
    return make_optimizer({group: schedule}, steps=steps)


@functools.cache
def _masked_modelling_loss(config: ModelConfig, batch: int) -> Loss:
    network = SpecCLIP(config, lora1=config.lora1)

    def loss(factors: Tree, frozen: Tree, tokens: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
        del own
        choose, mask = jax.random.split(key)
        drawn = tokens[jax.random.randint(choose, (batch,), 0, len(tokens))]
        hidden = losses.chunk_mask(mask, batch, config.specformer)
        predicted = network.apply(
            {"params": lora.combine(frozen, factors)},
            jnp.where(hidden[..., None], 0, drawn),
            method=lambda model, x: model.lamost.backbone.predict_tokens(x),
        )
        return losses.masked_modelling(predicted, drawn, hidden)

    return loss


@functools.cache
def _contrastive_loss(config: ModelConfig, batch: int) -> Loss:
    network = SpecCLIP(config, lora3=config.lora3)

    def loss(factors: Tree, frozen: Tree, shared: Tree, own: Tree, key: jax.Array) -> jax.Array:
        rows = jax.random.choice(key, len(shared["z_xp"]), (batch,), replace=False)
        tokens = own["tokens"] if "tokens" in own else shared["tokens"]
        z_lamost = network.apply(
            {"params": lora.combine(frozen, factors)},
            tokens[rows],
            method=lambda model, x: model.lamost.projection(x),
        )
        return losses.contrastive(shared["z_xp"][rows], z_lamost)

    return loss


@functools.cache
def _head_loss(config: ModelConfig, head: str, group: str, column: int) -> Loss:
    network = LabelHead(config.head, lora=config.loras[group])

    def loss(factors: Tree, frozen: Tree, stats: Tree, own: Tree, key: jax.Array) -> jax.Array:
        del key
        params = lora.combine(frozen, factors)[head]
        predicted = network.apply({"params": params, "batch_stats": stats}, own["x"])[:, column]
        return losses.pseudo_huber(predicted - own["y"], own["weight"])

    return loss


@functools.cache
def _tower_program(config: ModelConfig, kind: str, groups: tuple[str, ...]) -> Callable[..., jax.Array]:
    """Compile the LAMOST tower over seeds: "tokens", their "mean", or the "projected" vector."""
    loras = {group: config.loras[group] for group in groups}
    network = SpecCLIP(config, **loras)

    def tower(model: SpecCLIP, tokens: jax.Array) -> jax.Array:
        embedded = model.lamost.backbone(tokens)
        if kind == "projected":
            return model.lamost.projection(embedded)
        return embedded.mean(axis=1) if kind == "mean" else embedded

    def one(frozen: Tree, factors: Tree, flux: jax.Array, valid: jax.Array) -> jax.Array:
        params = lora.combine(frozen, factors) if groups else frozen
        return network.apply({"params": params}, tokenise(flux, config.specformer, valid), method=tower)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None, None)))


@functools.cache
def _head_program(config: ModelConfig, head: str, group: str | None) -> Callable[..., jax.Array]:
    """Compile the head over runs."""
    network = LabelHead(config.head, lora=None if group is None else config.loras[group])

    def one(frozen: Tree, factors: Tree, stats: Tree, features: jax.Array) -> jax.Array:
        params = (lora.combine(frozen, factors) if group else frozen)[head]
        return network.apply({"params": params, "batch_stats": stats}, features)

    return jax.jit(jax.vmap(one, in_axes=(None, 0, None, 0)))


def _prepared(model: Foundation, grid: Grid) -> tuple[jax.Array, jax.Array]:
    flux, valid = model.prepare(grid.flux, "lamost", ivar=grid.ivar, mask=grid.mask)
    return jnp.asarray(flux), jnp.asarray(valid)


def _groups(factors: Tree) -> list[str]:
    return sorted(set(jax.tree.leaves(lora.partition_labels(factors)))) if factors else []


def _robust(residual: FloatArray, delta: float = 0.3) -> FloatArray:
    return delta**2 * (np.sqrt(1 + (residual / delta) ** 2) - 1)


def _no_choice(seeds: int) -> dict[str, FloatArray]:
    return {name: np.zeros(seeds) for name in ("tower", "head", "step")}


def predict_with(
    model: Foundation,
    configuration: str,
    adapters: Tree,
    label: str,
    flux: NDArray[Any],
    ivar: NDArray[Any] | None,
    mask: NDArray[Any] | None,
) -> FloatArray:
    """Predict a label (S, n) of spectra on the LAMOST grid with the factors (S, ...) of a configuration."""
    heads = parse_configuration(configuration)[1]
    seeds = len(jax.tree.leaves(adapters)[0])
    column = model.config.labels.index(label)
    predictions = []
    for seed in range(seeds):
        adapted = model.adapted(jax.tree.map(lambda leaf, seed=seed: leaf[seed], adapters))
        each = [adapted.predict(flux, head, ivar=ivar, mask=mask) for head in heads]
        predictions.append(np.mean([one[model.config.labels[column]] for one in each], axis=0))
    return np.asarray(predictions, np.float64)
