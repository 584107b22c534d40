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

import jax
import jax.numpy as jnp
import numpy as np

from specjax.adapt import programs
from specjax.adapt.configuration import parse_configuration
from specjax.adapt.heads import GROUPS, Heads, HeadStage
from specjax.adapt.selection import Candidates, Choice, choose
from specjax.adapt.target import Splits, Target
from specjax.adapt.towers import Towers, UnlabelledStage
from specjax.errors import ConfigError, ModelError
from specjax.foundation import Foundation
from specjax.foundation.inference import Summary
from specjax.train.optimizer import GroupSchedule
from specjax.typing import AnyArray, FloatArray, Tree

KINDS = {"mlp1": "mean", "mlp2": "projected"}  # what a head reads


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
    lora1: UnlabelledStage = UnlabelledStage(steps=20, batch=8, schedule=GroupSchedule(learning_rate=1e-3))
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
        self.keys = _seed_keys(jnp.asarray(splits.seeds))
        stages = {"lora1": config.lora1, "lora3": config.lora3}
        self.towers = Towers(model, target, stages, self.keys, say)
        self.heads = Heads(
            model,
            target,
            splits,
            self.keys,
            stage=config.head,
            folds=config.folds,
            shrinkage=config.head_shrinkage,
            balance=config.balance,
        )
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
        physical = [self.heads.physical(head, choice.predictions) for head, choice in picked.items()]
        return Adaptation(
            configuration=configuration,
            predictions=np.mean(physical, axis=0),
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
        truth = self.heads.truth(head)
        return choose(candidates, truth, self.heads.weights(head), scale=scale, caution=self.config.caution)

    def _head_candidates(self, head: str, group: str | None, towers: Tree, scale: float) -> Candidates:
        """Adapt a head on towers shrunk by `scale`; on those as they are, once for all configurations."""
        if scale == 0 and (head, group) in self._on_base:
            return self._on_base[head, group]
        features = self.towers.features(KINDS[head], towers, scale)
        candidates = self.heads.candidates(head, group, features, scale)
        if scale == 0:
            self._on_base[head, group] = candidates
        return candidates


@jax.jit
def _seed_keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)


def predict_with(
    model: Foundation,
    configuration: str,
    adapters: Tree,
    label: str,
    flux: AnyArray,
    ivar: AnyArray | None,
    mask: AnyArray | None,
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
