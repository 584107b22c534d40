"""A group of seeds that is adapted together, in programs vmapped over its seeds."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt import forward
from specjax.adapt.candidates import Scorer, chosen_adapter, snapshots, split_tower
from specjax.adapt.configuration import Configuration
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.selection import Candidates, select, select_without
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.stage import Fitted, Stage, Trainer
from specjax.foundation import Foundation
from specjax.progress import Say
from specjax.typing import BoolArray, FloatArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupResult:
    """The result of one configuration for the S seeds of a group.

    Attributes:
        predictions: (S, n) the label of all labelled stars, in physical units.
        unseen: (S, a + b) predictions of the training stars out of fold and of the validation stars, in
            physical units. Each is that of the candidate which is selected without this star.
        adapters: the trained leaves (S, ...).
        chosen: "tower", "head" and "step", each (S,), see `AdaptationResult`.
        at_the_end: (S,) True for the seeds that selected the end of the training of the tower, at its full
            strength.
    """

    predictions: FloatArray
    unseen: FloatArray
    adapters: Tree
    chosen: dict[str, FloatArray]
    at_the_end: BoolArray


class SeedGroup:
    """Runs configurations for some seeds; results that several of them share are computed once."""

    def __init__(
        self,
        model: Foundation,
        inputs: TargetInputs,
        splits: Splits,
        size: int,
        config: AdaptConfig,
        say: Say,
    ) -> None:
        """Store the arguments; programs are made for `size` seeds, the first ones repeated."""
        self.count, self.splits = len(splits), splits.cycled(size)
        self.model, self.target, self.inputs, self.config = model, inputs.target, inputs, config
        keys = _seed_keys(jnp.asarray(self.splits.seeds))
        self.trainer = Trainer(model, inputs, self.splits, keys, config.ranks, config.start, say)
        self._towers: dict[tuple[str, ...], Tree] = {}
        self._heads: dict[tuple[tuple[str, ...], tuple[str, ...], Stage], Fitted] = {}

    def run(self, configuration: Configuration, zero_shot: FloatArray) -> GroupResult:
        """Train, select and predict.

        Args:
            configuration: one that adapts something.
            zero_shot: (n,) the predictions of the model as it is, in physical units.
        """
        heads = configuration.heads
        fits, lengths = self.fits(configuration)
        scorer = Scorer(self.model, self.target, self.splits, zero_shot)
        scales = self.config.tower_scales, (1.0,) if configuration.from_scratch else self.config.head_scales
        candidates = scorer.candidates(heads, fits, *scales)
        unit = forward.label_scale(self.model, heads[-1], self.target.label)[1]
        scaled = dataclasses.replace(candidates, unseen=candidates.unseen / unit)
        truth, weight = self.target.truth[scorer.unseen] / unit, self.target.weight
        weight = None if weight is None else weight[scorer.unseen]
        pick = select(scaled, truth, weight)
        without = select_without(scaled, truth, weight)  # (S, a + b)
        adapters = chosen_adapter(self.model, fits, candidates, pick)
        adapted = forward.predict_label(
            self.model, heads, adapters, self.inputs.labelled, self.target.label, self.inputs.base
        )
        trained = candidates.fit[pick] >= 0
        steps = np.array([lengths[fit] if fit >= 0 else 0.0 for fit in candidates.fit[pick]])
        chosen: dict[str, FloatArray] = {
            "tower": candidates.tower[pick],
            "head": candidates.head[pick],
            "step": steps * (candidates.step[pick] + 1),
        }
        return GroupResult(
            predictions=np.where(trained[:, None], adapted, zero_shot)[: self.count],
            unseen=np.take_along_axis(candidates.unseen, without[:, None], axis=1)[: self.count, 0],
            adapters=jax.tree.map(lambda leaf: np.asarray(leaf)[: self.count], adapters),
            chosen={name: values[: self.count] for name, values in chosen.items()},
            at_the_end=_at_the_end(fits, candidates)[pick][: self.count],
        )

    def fits(self, configuration: Configuration) -> tuple[list[Fitted], list[float]]:
        """Train what a configuration names, and return the steps between two snapshots of each training."""
        config, trainer = self.config, self.trainer
        heads_only = configuration.part(configuration.head_groups)
        fits: list[Fitted] = []
        lengths: list[float] = []

        def add(
            trained: Configuration, stages: Sequence[Stage], below: Tree = None, scale: float = 0.0
        ) -> None:
            for stage in stages:
                if below or trained.tower_groups:
                    folds = config.tower_folds
                    fits.append(trainer.train(trained, stage, folds=folds, below=below, scale=scale))
                else:
                    fits.append(self._heads_alone(trained, stage))
                lengths.append(stage.steps / stage.snapshots)

        if heads_only.groups:
            add(heads_only, config.head)
        if not configuration.tower_groups:
            return fits, lengths
        if config.objective == "joint":
            add(configuration, config.joint)
            return fits, lengths
        towers = self._tower_factors(configuration.tower_groups)
        for scale in (scale for scale in config.tower_scales if scale):
            below = towers if scale == 1 else lora.scale_updates(towers, jnp.full(len(self.splits), scale))
            if heads_only.groups:
                add(heads_only, config.head, below, scale)
            else:
                fits.append(trainer.untrained(configuration.heads, below, scale))
                lengths.append(0.0)
        return fits, lengths

    def _heads_alone(self, trained: Configuration, stage: Stage) -> Fitted:
        """Train heads on the unadapted tower, once for all configurations that have them."""
        key = (trained.groups, trained.heads, stage)
        if key not in self._heads:
            self._heads[key] = self.trainer.train(trained, stage, folds=self.config.folds)
        return self._heads[key]

    def _tower_factors(self, groups: tuple[str, ...]) -> Tree:
        """Train LoRA1 and LoRA3 one after the other, as in the paper: leaves (S, ...)."""
        if not groups:
            return {}
        if groups not in self._towers:
            below = self._tower_factors(groups[:-1])
            ((trained, stage),) = self.config.trainings(Configuration.parse(groups[-1]))
            fitted = self.trainer.train(trained, stage, below=below)
            mine = jax.tree.map(lambda leaf: leaf[:, 0, -1], fitted.leaves)
            self._towers[groups] = lora.combine(below, mine)
        return self._towers[groups]


def _at_the_end(fits: Sequence[Fitted], candidates: Candidates) -> BoolArray:
    """Return the candidates (C,) that are the last state of the training of the tower, at full strength."""
    towers = [index for index, fitted in enumerate(fits) if split_tower(fitted.leaves)[0]]
    last = max((snapshots(fits[index]) for index in towers), default=0) - 1
    trained, ended = candidates.fit == max(towers, default=-2), candidates.step == last
    result: BoolArray = trained & ended & (candidates.tower == 1)
    return result


@jax.jit
def _seed_keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
