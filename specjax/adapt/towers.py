"""LoRA1 and LoRA3: factors of the LAMOST tower, trained on unlabelled spectra, and the tower's features.

All factors and features have a leading axis of S seeds.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt import forward, objectives
from specjax.adapt.feature_cache import cached
from specjax.adapt.target import Target
from specjax.batching import micro_batch_size
from specjax.config import LORA_GROUPS
from specjax.errors import DataError
from specjax.flags import Flag
from specjax.foundation import BackboneFeatures, Foundation, ModelInput
from specjax.progress import Say, silent
from specjax.train.loop import fit
from specjax.train.optimizer import GroupSchedule
from specjax.typing import BoolArray, Float32Array, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabelledStage:
    """Settings of LoRA1 or LoRA3: optimizer steps on batches of unlabelled spectra."""

    steps: int
    batch: int
    schedule: GroupSchedule


class Towers:
    """Trains the tower's factors, once for each combination of groups, and runs the tower with them."""

    def __init__(
        self,
        model: Foundation,
        target: Target,
        stages: Mapping[str, UnlabelledStage],
        keys: jax.Array,
        say: Say = silent,
    ) -> None:
        """Check the target's labelled spectra and fill masked pixels; keys (S,) are those of the seeds."""
        self.model, self.target, self.stages, self.keys, self.say = model, target, stages, keys, say
        self._labelled = model.model_input(target.labelled)
        self._features: list[tuple[list[jax.Array], float, BackboneFeatures]] = []
        self._trained: dict[tuple[str, ...], Tree] = {}

    def factors(self, groups: tuple[str, ...]) -> Tree:
        """Return the factors of "lora1" and "lora3", leaves (S, ...); LoRA3 is trained on top of LoRA1.

        Raises:
            DataError: the target has no unlabelled spectra, or no Gaia XP spectra of them, to train on.
        """
        if not groups:
            return {}
        if groups not in self._trained:
            earlier, group = self.factors(groups[:-1]), groups[-1]
            self.say(f"{self.target.name}: {group} on {len(self.target.unlabelled)} unlabelled spectra")
            trained = self._masked_modelling() if group == "lora1" else self._contrastive(earlier)
            self._trained[groups] = lora.combine(earlier, trained)
        return self._trained[groups]

    def features(self, head: str, factors: Tree, scale: float = 1.0) -> jax.Array:
        """Return the features of the labelled stars for a head: (S, n, d), or (1, n, d) without factors.

        The factors are multiplied by `scale`. The backbone runs once for both heads, and for all trees with
        the same LoRA1 factors.
        """
        projection, backbone = lora.split(factors if scale else {}, ["lora1"])
        features = self._labelled_features(backbone, scale)
        if head == "mlp1":
            return jnp.asarray(features.mean)
        return forward.project(self.model, self._scaled(projection, scale), features.mixed)

    def outside_training(self) -> dict[str, str]:
        """Return the flags of labelled stars that are unlike the base model's training spectra, by id.

        Empty if the model does not know its training domain.
        """
        if self.model.ood is None:
            return {}
        flags = self.model.ood.flags(self._labelled_features({}, 0.0).mean[0])
        pairs = zip(self.target.labelled.id.tolist(), flags.tolist(), strict=True)
        return {name: flag for name, flag in pairs if flag != Flag.GOOD}

    def _masked_modelling(self) -> Tree:
        model, config = self.model, self.model.config
        tokens = objectives.tokens(config, *self._unlabelled)
        batch = self.stages["lora1"].batch
        rows = micro_batch_size(config, batch, len(self.keys), np.dtype(model.dtype).itemsize)
        loss = objectives.masked_modelling_loss(config, batch, model.dtype, rows)
        frozen = {"lamost": {"backbone": model.params["lamost"]["backbone"]}}
        return self._fit("lora1", loss, frozen, tokens, {})

    def _contrastive(self, earlier: Tree) -> Tree:
        z_xp, has_xp = self._xp_projected
        paired = np.flatnonzero(has_xp)
        flux, valid = self._unlabelled
        data = ModelInput(flux[paired], valid[paired])
        mixed = self._run_backbone(earlier, data).mixed
        shared, own = {"z_xp": z_xp[paired]}, {}
        if earlier:
            own["mixed"] = mixed  # (S, m, dim)
        else:
            shared["mixed"] = mixed[0]  # of the base model, (m, dim)
        batch = min(self.stages["lora3"].batch, len(paired))
        loss = objectives.contrastive_loss(self.model.config, batch, self.model.dtype)
        # The backbone has run already: its place in the tree is empty.
        frozen = {"lamost": {"backbone": {}, "projection": self.model.params["lamost"]["projection"]}}
        return self._fit("lora3", loss, frozen, shared, own)

    def _fit(self, group: str, loss: Any, frozen: Tree, shared: Tree, own: Tree) -> Tree:
        stage = self.stages[group]
        result = fit(
            loss,
            objectives.optimizer(group, stage.schedule, stage.steps),
            frozen=frozen,
            trainable=objectives.initial_factors(self.model.config, group)(self.keys, self.model.params),
            shared=shared,
            per_seed=own,
            keys=jax.vmap(lambda key: jax.random.fold_in(key, 10 + LORA_GROUPS.index(group)))(self.keys),
            steps=stage.steps,
        )
        self.say(f"{self.target.name}: {group} loss {float(result.loss.mean()):.3f}")
        return jax.tree.map(lambda leaf: leaf[:, -1], result.snapshots)

    @functools.cached_property
    def _unlabelled(self) -> ModelInput:
        if len(self.target.unlabelled) < 2:
            raise DataError(
                f"{self.target.name}: LoRA1 and LoRA3 need unlabelled spectra, and there are none"
            )
        return self.model.model_input(self.target.unlabelled)

    @functools.cached_property
    def _xp_projected(self) -> tuple[Float32Array, BoolArray]:
        """Projected Gaia XP spectra (m, dim) of the unlabelled stars, and which (m,) have one."""
        xp = self.target.unlabelled_xp
        if xp is None or xp.mask.all():
            raise DataError(f"{self.target.name}: LoRA3 needs Gaia XP spectra of the unlabelled stars")
        return self.model.embed(xp), np.asarray(~xp.mask.all(axis=1))

    def _labelled_features(self, factors: Tree, scale: float) -> BackboneFeatures:
        """Run the backbone on the labelled stars, once for each of LoRA1's factors and scales."""
        leaves = jax.tree.leaves(factors)
        for known, known_scale, features in self._features:
            if _identical(known, leaves) and (known_scale == scale or not leaves):
                return features
        features = self._run_backbone(self._scaled(factors, scale), self._labelled)
        self._features.append((leaves, scale, features))
        return features

    def _scaled(self, factors: Tree, scale: float) -> Tree:
        return lora.scale_updates(factors, jnp.full(len(self.keys), scale)) if factors else {}

    def _run_backbone(self, factors: Tree, data: ModelInput) -> BackboneFeatures:
        """Run the backbone with each seed's LoRA1; without it, use cached features of an earlier run."""
        run = functools.partial(forward.backbone, self.model, factors, data)
        return run() if factors else cached(run, self.model, data)


def _identical(first: list[jax.Array], second: list[jax.Array]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))
