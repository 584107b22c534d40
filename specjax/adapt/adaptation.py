"""Adaptation of a foundation model to a target survey: the stages and the strength of each configuration.

The stages of a configuration run in this order, each as one program over all seeds:

| group        | objective                                       | data                        |
|--------------|-------------------------------------------------|-----------------------------|
| lora1        | masked modelling                                | unlabelled target spectra   |
| lora3        | contrastive, against Gaia XP of the same stars  | unlabelled pairs            |
| lora2, lora4 | robust regression of the label                  | labelled training stars     |

Training on sixty stars can make a model worse as easily as better. The adaptation strength is therefore
selected for each seed by cross-validation within its training stars: how long the head is trained, and by
what factor the low-rank updates of head and tower are multiplied, 0 included. Validation and test stars are
not used for this.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt.configuration import Configuration
from specjax.adapt.heads import Heads, HeadStage
from specjax.adapt.selection import Candidates, Selection, select
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.adapt.towers import Towers, UnlabelledStage
from specjax.errors import ConfigError, ModelError
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.train.optimizer import GroupSchedule
from specjax.typing import FloatArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of an adaptation; the defaults were selected on validation stars (see docs/adaptation.md)."""

    seeds: int = 16
    train: int = 60
    validate: int = 10
    folds: int = 5
    lora1: UnlabelledStage = UnlabelledStage(steps=20, batch=8, schedule=GroupSchedule(learning_rate=1e-3))
    lora3: UnlabelledStage = UnlabelledStage(steps=30, batch=64, schedule=GroupSchedule(learning_rate=1e-3))
    head: HeadStage = HeadStage()
    head_shrinkage: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    tower_shrinkage: tuple[float, ...] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdaptationResult:
    """The result of one configuration, for S seeds.

    Attributes:
        configuration: the groups that were adapted and the heads that predict.
        predictions: (S, n) the label of all labelled stars, in physical units.
        adapters: the low-rank factors, leaves (S, ...); {} for zero-shot.
        chosen: for each head {"tower": (S,), "head": (S,), "step": (S,)}, as selected by cross-validation.
    """

    configuration: Configuration
    predictions: FloatArray
    adapters: Tree
    chosen: dict[str, dict[str, FloatArray]]


class Adaptation:
    """Runs configurations on one target; results that several of them share are computed once."""

    def __init__(
        self, model: Foundation, target: Target, splits: Splits, config: AdaptConfig, say: Say = silent
    ) -> None:
        """Prepare the target's spectra.

        Raises:
            ConfigError: the model does not predict the target's label.
        """
        if target.label not in model.config.labels:
            raise ConfigError(f"the model predicts {', '.join(model.config.labels)}, not {target.label!r}")
        self.model, self.target, self.splits, self.config = model, target, splits, config
        keys = _seed_keys(jnp.asarray(splits.seeds))
        self.towers = Towers(model, target, {"lora1": config.lora1, "lora3": config.lora3}, keys, say)
        self.heads = Heads(
            model,
            target,
            splits,
            keys,
            stage=config.head,
            folds=config.folds,
            shrinkage=config.head_shrinkage,
        )
        self._on_base: dict[tuple[str, str | None], Candidates] = {}

    def run(self, configuration: Configuration) -> AdaptationResult:
        """Run one configuration for all seeds.

        Raises:
            ModelError: the model lacks a part that the configuration needs.
            DataError: the target lacks the unlabelled spectra or Gaia XP spectra that it needs.
        """
        self._require(configuration)
        towers = self.towers.factors(configuration.tower_groups)
        adapters: Tree = {}
        selected: dict[str, Selection] = {}
        scale = None
        for head in reversed(configuration.heads):  # they share the tower: the last head selects its scale
            selected[head] = self._adapt_head(head, configuration.head_group(head), towers, scale)
            adapters = {**adapters, **selected[head].factors}
            scale = selected[head].chosen["tower"]
        if towers:
            adapters = {**adapters, **lora.scale_updates(towers, jnp.asarray(scale))}
        physical = [self.heads.physical(head, one.predictions) for head, one in selected.items()]
        return AdaptationResult(
            configuration=configuration,
            predictions=np.mean(physical, axis=0),
            adapters=jax.tree.map(np.asarray, adapters),
            chosen={head: selected[head].chosen for head in configuration.heads},
        )

    def _require(self, configuration: Configuration) -> None:
        params = self.model.params
        for head in configuration.heads:
            if head not in params or (head == "mlp2" and "projection" not in params["lamost"]):
                raise ModelError(f"this model has no head {head!r}, or no features for it")
        if configuration.needs_xp and "projection" not in params.get("gaia_xp", {}):
            raise ModelError("this model has no Gaia XP tower, which LoRA3 aligns with")

    def _adapt_head(self, head: str, group: str | None, towers: Tree, scale: FloatArray | None) -> Selection:
        """Adapt one head and select its strength; scale (S,) is that of the tower if it is fixed already."""
        offered = (0.0, *(s for s in self.config.tower_shrinkage if s > 0)) if towers else (0.0,)
        candidates = [self._head_candidates(head, group, towers, value) for value in offered]
        if group is None and not towers:
            nothing = {name: np.zeros(len(self.splits)) for name in ("tower", "head", "step")}
            return Selection(nothing, {}, candidates[0].predictions[:, 0])
        return select(candidates, self.heads.truth(head), scale=scale)

    def _head_candidates(self, head: str, group: str | None, towers: Tree, scale: float) -> Candidates:
        """Adapt a head on the tower with its factors times `scale`; for 0, once for all configurations."""
        if scale == 0 and (head, group) in self._on_base:
            return self._on_base[head, group]
        features = self.towers.features(head, towers, scale)
        candidates = self.heads.candidates(head, group, features, scale)
        if scale == 0:
            self._on_base[head, group] = candidates
        return candidates


@jax.jit
def _seed_keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
