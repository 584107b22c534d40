"""Adaptation of a foundation model to a target survey.

By default one program trains all groups of a configuration together, on the labels, through every layer that
is adapted (`joint`). The paper's sequence of stages is the other choice (`sequential`): LoRA1 by masked
modelling, LoRA3 by alignment with Gaia XP, then the factors of the heads on the labels.

Training on sixty stars can make a model worse as easily as better. The adaptation strength is therefore
selected for each seed by cross-validation within its training stars and on its validation stars: after how
many steps training stops, and by what factors the updates of tower and heads are multiplied. To train the
heads alone, or nothing at all, is always among the candidates. Test stars are not used.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt import forward
from specjax.adapt.candidates import Scorer, chosen_adapter, snapshots, split_tower
from specjax.adapt.checks import check_label, check_model, check_ranks
from specjax.adapt.configuration import Configuration
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.selection import Candidates, select
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.stage import Fitted, Stage, Trainer
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.typing import FloatArray, IntArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AdaptationResult:
    """The result of one configuration, for S seeds.

    Attributes:
        configuration: what was adapted and the heads that predict.
        predictions: (S, n) the label of all labelled stars, in physical units.
        adapters: the trained leaves (S, ...); {} for zero-shot.
        chosen: "tower" and "head", the factors on the updates, and "step", after which training stopped, each
            (S,), as selected; 0 for what remains as it is.
    """

    configuration: Configuration
    predictions: FloatArray
    adapters: Tree
    chosen: dict[str, FloatArray]


class Adaptation:
    """Runs configurations on one target; results that several of them share are computed once."""

    def __init__(
        self, model: Foundation, target: Target, splits: Splits, config: AdaptConfig, say: Say = silent
    ) -> None:
        """Prepare the target's spectra.

        Raises:
            ConfigError: the model does not predict the target's label, or a rule of the ranks matches no
                layer.
        """
        check_ranks(config.ranks, model.params)
        check_label(model, target.label)
        self.model, self.target, self.splits, self.config = model, target, splits, config
        self.inputs = TargetInputs(model, target)
        keys = _seed_keys(jnp.asarray(splits.seeds))
        self.trainer = Trainer(model, self.inputs, splits, keys, config.ranks, say)
        self._zero_shot: dict[tuple[str, ...], FloatArray] = {}
        self._towers: dict[tuple[str, ...], Tree] = {}
        self._heads: dict[tuple[tuple[str, ...], tuple[str, ...], Stage], Fitted] = {}

    def run(self, configuration: Configuration) -> AdaptationResult:
        """Run one configuration for all seeds.

        Raises:
            ConfigError: the settings cannot train the configuration.
            ModelError: the model lacks a part that the configuration needs.
            DataError: the target lacks the unlabelled spectra or Gaia XP spectra that it needs.
        """
        self.config.trainings(configuration)
        check_model(self.model, [configuration], self.config)
        heads, seeds = configuration.heads, len(self.splits)
        base = self._as_it_is(heads)
        unadapted = np.tile(base, (seeds, 1))
        if not configuration.is_adapted:
            nothing = {name: np.zeros(seeds) for name in ("tower", "head", "step")}
            return AdaptationResult(
                configuration=configuration, predictions=unadapted, adapters={}, chosen=nothing
            )
        fits, lengths = self._fits(configuration)
        scorer = Scorer(self.model, self.target, self.splits, base)
        scales = self.config.tower_scales, (1.0,) if configuration.from_scratch else self.config.head_scales
        candidates = scorer.candidates(heads, fits, *scales)
        unit = forward.label_scale(self.model, heads[-1], self.target.label)[1]
        scaled = dataclasses.replace(candidates, unseen=candidates.unseen / unit)
        pick = select(scaled, self.target.truth[scorer.unseen] / unit)
        adapters = chosen_adapter(self.model, fits, candidates, pick)
        adapted = forward.predict_label(
            self.model, heads, adapters, self.inputs.labelled, self.target.label, self.inputs.base
        )
        trained = candidates.fit[pick] >= 0
        self._warn_of_short_training(fits, candidates, pick)
        steps = np.array([lengths[fit] if fit >= 0 else 0.0 for fit in candidates.fit[pick]])
        return AdaptationResult(
            configuration=configuration,
            predictions=np.where(trained[:, None], adapted, unadapted),
            adapters=jax.tree.map(np.asarray, adapters),
            chosen={
                "tower": candidates.tower[pick],
                "head": candidates.head[pick],
                "step": steps * (candidates.step[pick] + 1),
            },
        )

    def _warn_of_short_training(self, fits: Sequence[Fitted], candidates: Candidates, pick: IntArray) -> None:
        """Say if most seeds selected the end of a training of the tower, at its full strength."""
        towers = [index for index, fitted in enumerate(fits) if split_tower(fitted.leaves)[0]]
        last = max((snapshots(fits[index]) for index in towers), default=0) - 1
        at_the_end = (candidates.fit == max(towers, default=-2)) & (candidates.step == last)
        count = int((at_the_end & (candidates.tower == 1))[pick].sum())
        if count > len(pick) / 2:
            self.trainer.say(
                f"{self.target.name}: {count} of {len(pick)} seeds selected the end of the training: more"
                " steps may help (--steps)"
            )

    def _fits(self, configuration: Configuration) -> tuple[list[Fitted], list[float]]:
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

    def _as_it_is(self, heads: tuple[str, ...]) -> FloatArray:
        """Return the prediction (n,) of the unadapted model, averaged over heads."""
        if heads not in self._zero_shot:
            single = [
                forward.predict_label(
                    self.model, (head,), {}, self.inputs.labelled, self.target.label, self.inputs.base
                )[0]
                for head in heads
            ]
            self._zero_shot[heads] = np.asarray(np.mean(single, axis=0))
        return self._zero_shot[heads]


@jax.jit
def _seed_keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
