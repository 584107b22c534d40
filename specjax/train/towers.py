"""The LAMOST tower on a target survey: its unlabelled stages LoRA1 and LoRA3, and the features it gives.

For S seeds: factors and features have a leading axis S.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.config import LORA_GROUPS
from specjax.errors import DataError
from specjax.foundation import Foundation
from specjax.models.layers import tokenise
from specjax.models.specclip import SpecCLIP
from specjax.models.xp_autoencoder import xp_vector
from specjax.targets import Grid, Target
from specjax.train import programs
from specjax.train.ensemble import fit
from specjax.train.optimizer import GroupSchedule

Tree = Any

ROWS_AT_ONCE = 32  # spectra that each seed embeds at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabelledStage:
    """LoRA1 or LoRA3: so many steps on batches of unlabelled spectra."""

    steps: int
    batch: int
    schedule: GroupSchedule


class Towers:
    """Trains the tower's factors, each sum of groups once, and runs the tower with them."""

    def __init__(
        self,
        model: Foundation,
        target: Target,
        stages: Mapping[str, UnlabelledStage],
        keys: jax.Array,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Put the target's labelled spectra on the device; keys (S,) are the seeds'."""
        self.model, self.target, self.stages, self.keys, self.say = model, target, stages, keys, say
        self._labelled = _prepared(model, target.labelled)
        self._trained: dict[tuple[str, ...], Tree] = {}

    def factors(self, groups: tuple[str, ...]) -> Tree:
        """Return the factors of "lora1" and "lora3", each leaf (S, ...); LoRA3 sees LoRA1 adapted.

        Raises:
            DataError: the target lacks the unlabelled spectra or Gaia XP partners that they train on.
        """
        if not groups:
            return {}
        if groups not in self._trained:
            earlier, group = self.factors(groups[:-1]), groups[-1]
            stage = {"lora1": self._masked_modelling, "lora3": self._contrastive}[group]
            self.say(f"{self.target.name}: {group} on {len(self.target.unlabelled)} unlabelled spectra")
            self._trained[groups] = lora.combine(earlier, stage(earlier))
        return self._trained[groups]

    def features(self, kind: str, factors: Tree, scale: float = 1.0) -> jax.Array:
        """Embed the labelled stars with factors shrunk by `scale`: (S, n, d), or (1, n, d) without factors.

        `kind` is "mean" (of the tokens) or "projected".
        """
        used = programs.scaled(factors, jnp.full(len(self.keys), scale)) if factors and scale else {}
        return self._embed(kind, used, *self._labelled)

    def start(self, group: str) -> Tree:
        """Draw the factors that training starts from, each leaf (S, ...)."""
        return programs.start(self.model.config, group)(self.keys, self.model.params)

    def _masked_modelling(self, earlier: Tree) -> Tree:
        del earlier  # LoRA1 comes first
        config = self.model.config
        flux, valid = self._unlabelled
        loss = programs.masked_modelling_loss(config, self.stages["lora1"].batch)
        frozen = {"lamost": self.model.params["lamost"]}
        return self._fit("lora1", loss, frozen, tokenise(flux, config.specformer, valid), {})

    def _contrastive(self, earlier: Tree) -> Tree:
        z_xp = self._xp_projected
        flux, valid = self._unlabelled
        paired = np.flatnonzero(np.asarray(self.target.unlabelled.xp_valid).any(axis=1))
        tokens = self._embed("tokens", earlier, flux[paired], valid[paired])
        shared, own = {"z_xp": z_xp[paired]}, {}
        if earlier:
            own["tokens"] = tokens  # (S, m, t, d)
        else:
            shared["tokens"] = tokens[0]  # the base model's, (m, t, d)
        loss = programs.contrastive_loss(self.model.config, min(self.stages["lora3"].batch, len(paired)))
        # The backbone has run already: its place in the tree is empty.
        frozen = {"lamost": {"backbone": {}, "projection": self.model.params["lamost"]["projection"]}}
        return self._fit("lora3", loss, frozen, shared, own)

    def _fit(self, group: str, loss: Any, frozen: Tree, shared: Tree, own: Tree) -> Tree:
        stage = self.stages[group]
        result = fit(
            loss,
            programs.optimizer(group, stage.schedule, stage.steps),
            frozen=frozen,
            trainable=self.start(group),
            shared=shared,
            per_seed=own,
            keys=jax.vmap(lambda key: jax.random.fold_in(key, 10 + LORA_GROUPS.index(group)))(self.keys),
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

    def _embed(self, kind: str, factors: Tree, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Run the LAMOST tower with each seed's factors: (S, n, ...), or (1, n, ...) without factors."""
        program = programs.tower_program(self.model.config, kind, tuple(_groups(factors)))
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


def _prepared(model: Foundation, grid: Grid) -> tuple[jax.Array, jax.Array]:
    flux, valid = model.prepare(grid.flux, "lamost", ivar=grid.ivar, mask=grid.mask)
    return jnp.asarray(flux), jnp.asarray(valid)


def _groups(factors: Tree) -> list[str]:
    return sorted(set(jax.tree.leaves(lora.partition_labels(factors)))) if factors else []
