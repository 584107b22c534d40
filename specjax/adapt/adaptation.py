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
import re
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from specjax import lora
from specjax.adapt import forward
from specjax.adapt.candidates import Scorer, chosen_adapter, snapshots, split_tower
from specjax.adapt.configuration import Configuration
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.objectives import Objective
from specjax.adapt.selection import Candidates, select
from specjax.adapt.splits import Splits
from specjax.adapt.stage import Fitted, Stage, Trainer
from specjax.adapt.start import Ranks
from specjax.adapt.target import Target
from specjax.errors import ConfigError, ModelError
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.train.optimizer import GroupSchedule
from specjax.typing import FloatArray, IntArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of an adaptation; the defaults were selected on validation stars (see docs/adaptation.md).

    Attributes:
        seeds: random splits, each with an adapter of its own.
        train: training stars of each.
        validate: validation stars of each; they take part in the selection.
        folds: of the cross-validation where only heads are trained.
        tower_folds: the same where the tower is trained, which takes longer.
        objective: "joint" trains all groups together, "sequential" as in the paper.
        head: trainings of heads alone that are offered to the selection.
        joint: trainings of tower and heads together that are offered.
        lora1: first stage of "sequential".
        lora3: second stage of "sequential".
        head_scales: factors on the updates of heads that are offered to the selection, besides 0.
        tower_scales: the same for the tower.
        ranks: (regular expression, rank) by layer, see `lora.init_adapters`.
        one_split: all seeds share one split and differ in the rest, as in the paper.
        fuse: also average the products of the factors of all seeds into one adapter, and score it beside the
            mean of the seeds' predictions on stars that no seed has trained or been selected on.

    Raises:
        ConfigError: no seeds, fewer than two folds, factors outside 0 to 1, or ranks that cannot be read.
    """

    seeds: int = 16
    train: int = 60
    validate: int = 10
    folds: int = 5
    tower_folds: int = 3
    objective: Literal["joint", "sequential"] = "joint"
    head: tuple[Stage, ...] = tuple(
        Stage(steps=80, snapshots=4, head=GroupSchedule(learning_rate=rate, weight_decay=0.1))
        for rate in (1e-3, 1e-2)
    )
    joint: tuple[Stage, ...] = (
        Stage(
            steps=60,
            batch=20,
            snapshots=6,
            # The rate rises during half of the run, so that early states have moved little: what a target
            # without a gap needs, and late ones far.
            tower=GroupSchedule(learning_rate=5e-3, warmup=0.5),
            head=GroupSchedule(learning_rate=5e-3, warmup=0.5, weight_decay=0.1),
            ratio=4.0,
        ),
    )
    lora1: Stage = Stage(steps=20, batch=8, objective=Objective(label=0.0, masked=1.0))
    lora3: Stage = Stage(steps=30, batch=64, objective=Objective(label=0.0, contrastive=1.0))
    head_scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    tower_scales: tuple[float, ...] = (0.25, 0.5, 1.0)
    ranks: Ranks = ()
    one_split: bool = False
    fuse: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"at least one seed is needed, not {self.seeds}")
        if min(self.folds, self.tower_folds) < 2:
            raise ConfigError(f"cross-validation needs at least two folds: {self.folds}, {self.tower_folds}")
        if not all(0 <= scale <= 1 for scale in (*self.head_scales, *self.tower_scales)):
            raise ConfigError("factors on the updates must be between 0 and 1")
        for rule, rank in self.ranks:
            try:
                re.compile(rule)
            except re.error as error:
                raise ConfigError(f"{rule!r} in ranks is not a regular expression: {error}") from None
            if rank < 0:
                raise ConfigError(f"the rank of {rule!r} must be 0 or more, not {rank}")

    def with_steps(self, steps: int) -> "AdaptConfig":
        """Return the same with that many steps of joint training and a snapshot every ten.

        Raises:
            ConfigError: steps is not a positive multiple of ten.
        """
        if steps < 1 or steps % 10:
            raise ConfigError(f"the number of steps must be a multiple of 10, not {steps}")
        longer = tuple(dataclasses.replace(stage, steps=steps, snapshots=steps // 10) for stage in self.joint)
        return dataclasses.replace(self, joint=longer)

    def needs_xp(self, configuration: Configuration) -> bool:
        """Return whether a configuration needs Gaia XP spectra, as it does to align the projection."""
        if self.objective == "sequential":
            return "lora3" in configuration.groups
        aligned = "mlp2" in configuration.heads and configuration.tower_groups
        return bool(aligned and any(stage.objective.contrastive for stage in self.joint))


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
            ConfigError: the model does not predict the target's label.
        """
        if target.label not in model.config.labels:
            raise ConfigError(f"the model predicts {', '.join(model.config.labels)}, not {target.label!r}")
        self.model, self.target, self.splits, self.config = model, target, splits, config
        self.inputs = TargetInputs(model, target)
        keys = _seed_keys(jnp.asarray(splits.seeds))
        self.trainer = Trainer(model, self.inputs, splits, keys, config.ranks, say)
        self._zero_shot: dict[tuple[str, ...], FloatArray] = {}
        self._towers: dict[tuple[str, ...], Tree] = {}

    def run(self, configuration: Configuration) -> AdaptationResult:
        """Run one configuration for all seeds.

        Raises:
            ModelError: the model lacks a part that the configuration needs.
            DataError: the target lacks the unlabelled spectra or Gaia XP spectra that it needs.
        """
        self._require(configuration)
        heads, seeds = configuration.heads, len(self.splits)
        base = self._as_it_is(heads)
        unadapted = np.tile(base, (seeds, 1))
        if not configuration.is_adapted:
            nothing = {name: np.zeros(seeds) for name in ("tower", "head", "step")}
            return AdaptationResult(
                configuration=configuration, predictions=unadapted, adapters={}, chosen=nothing
            )
        folds = self.config.tower_folds if configuration.tower_groups else self.config.folds
        fits, lengths = self._fits(configuration, folds)
        scorer = Scorer(self.model, self.target, self.splits, base)
        scales = self.config.tower_scales, (1.0,) if configuration.from_scratch else self.config.head_scales
        candidates = scorer.candidates(heads, fits, *scales, folds)
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

    def _fits(self, configuration: Configuration, folds: int) -> tuple[list[Fitted], list[float]]:
        """Train what a configuration names, and return the steps between two snapshots of each training."""
        config, trainer = self.config, self.trainer
        heads_only = _part(configuration, configuration.head_groups)
        fits: list[Fitted] = []
        lengths: list[float] = []

        def add(
            trained: Configuration, stages: Sequence[Stage], below: Tree = None, scale: float = 0.0
        ) -> None:
            for stage in stages:
                fits.append(trainer.train(trained, stage, folds=folds, below=below, scale=scale))
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

    def _tower_factors(self, groups: tuple[str, ...]) -> Tree:
        """Train LoRA1 and LoRA3 one after the other, as in the paper: leaves (S, ...)."""
        if not groups:
            return {}
        if groups not in self._towers:
            below, group = self._tower_factors(groups[:-1]), groups[-1]
            stage = {"lora1": self.config.lora1, "lora3": self.config.lora3}.get(group)
            if stage is None:
                raise ConfigError("only low-rank factors can be trained in a sequence of stages")
            fitted = self.trainer.train(Configuration.parse(group), stage, below=below)
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

    def _require(self, configuration: Configuration) -> None:
        params = self.model.params
        for head in configuration.heads:
            if head not in params or (head == "mlp2" and "projection" not in params["lamost"]):
                raise ModelError(f"this model has no head {head!r}, or no features for it")
        if self.config.needs_xp(configuration) and "projection" not in params.get("gaia_xp", {}):
            raise ModelError("this model has no Gaia XP tower, which LoRA3 aligns with")


def _part(configuration: Configuration, groups: tuple[str, ...]) -> Configuration:
    """Return a configuration that trains a part of another's groups, with the same heads."""
    return dataclasses.replace(configuration, groups=groups)


@jax.jit
def _seed_keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
