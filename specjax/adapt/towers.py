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
from specjax.adapt import programs
from specjax.adapt.feature_cache import remembered
from specjax.adapt.target import Grid, Target
from specjax.batching import inference_batch_size, micro_batch_size, pad_rows
from specjax.config import LORA_GROUPS
from specjax.errors import DataError
from specjax.foundation import Foundation
from specjax.foundation.inference import Summary
from specjax.train.loop import fit
from specjax.train.optimizer import GroupSchedule
from specjax.typing import BoolArray, Float32Array, Tree

NOTHING = {"none": np.zeros(1)}  # the factors of one seed, where there are none


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
        """Prepare the target's labelled spectra; keys (S,) are the seeds'."""
        self.model, self.target, self.stages, self.keys, self.say = model, target, stages, keys, say
        self._labelled = _prepared(model, target.labelled)
        self._summaries: list[tuple[list[jax.Array], float, Summary]] = []
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

        `kind` is "mean" (of the tokens) or "projected". The backbone runs once for both kinds, and for all
        trees of the same LoRA1 factors.
        """
        backbone, projection = _parted(factors if scale else {})
        summary = self._labelled_summary(backbone, scale)
        if kind == "mean":
            return jnp.asarray(summary.mean)
        return self._project(self._shrunk(projection, scale), summary.mixed)

    def start(self, group: str) -> Tree:
        """Draw the factors that training starts from, each leaf (S, ...)."""
        return programs.start(self.model.config, group)(self.keys, self.model.params)

    def _masked_modelling(self, earlier: Tree) -> Tree:
        del earlier  # LoRA1 comes first
        flux, valid = self._unlabelled
        tokens = programs.tokens(self.model.config, flux, valid)
        config, dtype, batch = self.model.config, self.model.dtype, self.stages["lora1"].batch
        rows = micro_batch_size(config, batch, len(self.keys), np.dtype(dtype).itemsize)
        loss = programs.masked_modelling_loss(config, batch, dtype, rows)
        frozen = {"lamost": {"backbone": self.model.params["lamost"]["backbone"]}}
        return self._fit("lora1", loss, frozen, tokens, {})

    def _contrastive(self, earlier: Tree) -> Tree:
        z_xp = self._xp_projected
        flux, valid = self._unlabelled
        paired = np.flatnonzero(np.asarray(self.target.unlabelled.xp_valid).any(axis=1))
        mixed = self._summarise(earlier, flux[paired], valid[paired]).mixed
        shared, own = {"z_xp": z_xp[paired]}, {}
        if earlier:
            own["mixed"] = mixed  # (S, m, dim)
        else:
            shared["mixed"] = mixed[0]  # the base model's, (m, dim)
        batch = min(self.stages["lora3"].batch, len(paired))
        loss = programs.contrastive_loss(self.model.config, batch, self.model.dtype)
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
    def _unlabelled(self) -> tuple[Float32Array, BoolArray]:
        if len(self.target.unlabelled) < 2:
            raise DataError(
                f"{self.target.name}: LoRA1 and LoRA3 need unlabelled spectra, and there are none"
            )
        return _prepared(self.model, self.target.unlabelled)

    @functools.cached_property
    def _xp_projected(self) -> Float32Array:
        grid = self.target.unlabelled
        if grid.xp_flux is None or grid.xp_valid is None or not grid.xp_valid.any():
            raise DataError(f"{self.target.name}: LoRA3 needs Gaia XP spectra of the unlabelled stars")
        return self.model.embed(grid.xp_flux, "gaia_xp", mask=~grid.xp_valid)

    def _labelled_summary(self, backbone: Tree, scale: float) -> Summary:
        """Summarise the labelled stars, once for each of LoRA1's factors and scales."""
        leaves = jax.tree.leaves(backbone)
        for known, known_scale, summary in self._summaries:
            if _identical(known, leaves) and (known_scale == scale or not leaves):
                return summary
        summary = self._summarise(self._shrunk(backbone, scale), *self._labelled)
        self._summaries.append((leaves, scale, summary))
        return summary

    def _shrunk(self, factors: Tree, scale: float) -> Tree:
        return programs.scaled(factors, jnp.full(len(self.keys), scale)) if factors else {}

    def _summarise(self, factors: Tree, flux: Float32Array, valid: BoolArray) -> Summary:
        """Run the backbone with each seed's LoRA1, or take what an earlier run made without it.

        Leaves are (S, n, ...), or (1, n, ...) without factors.
        """
        run = functools.partial(self._run_backbone, factors, flux, valid)
        return run() if factors else remembered(run, self.model, flux, valid)

    def _run_backbone(self, factors: Tree, flux: Float32Array, valid: BoolArray) -> Summary:
        config, dtype = self.model.config, self.model.dtype
        program = programs.summary_program(config, bool(factors), dtype)
        frozen, seeds = {"lamost": self.model.params["lamost"]}, len(self.keys) if factors else 1
        size = max(1, inference_batch_size(config, np.dtype(dtype).itemsize) // seeds)
        padded = -len(flux) % size
        flux, valid = (pad_rows(array, len(array) + padded) for array in (flux, valid))
        parts = [
            program(frozen, factors or NOTHING, flux[start : start + size], valid[start : start + size])
            for start in range(0, len(flux), size)
        ]
        rows = len(flux) - padded
        return jax.tree.map(lambda *each: jnp.concatenate(each, axis=1)[:, :rows], *parts)

    def _project(self, factors: Tree, mixed: jax.Array) -> jax.Array:
        """Finish the projection with each seed's LoRA3: (S, n, dim), or (1, n, dim) without any factors."""
        program = programs.projection_program(self.model.config, bool(factors), self.model.dtype)
        if factors:
            mixed = jnp.broadcast_to(mixed, (len(self.keys), *mixed.shape[1:]))
        frozen = {"lamost": {"projection": self.model.params["lamost"]["projection"]}}
        return program(frozen, factors or {"none": np.zeros(len(mixed))}, mixed)


def _prepared(model: Foundation, grid: Grid) -> tuple[Float32Array, BoolArray]:
    return model.prepare(grid.flux, "lamost", ivar=grid.ivar, mask=grid.mask)


def _parted(factors: Tree) -> tuple[Tree, Tree]:
    """Part a tower's factors into those of the backbone (LoRA1) and of the projection (LoRA3)."""
    rest, backbone = lora.split(factors, ["lora1"])
    return backbone, rest


def _identical(first: list[jax.Array], second: list[jax.Array]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))
