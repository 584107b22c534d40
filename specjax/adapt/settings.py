"""Settings of an adaptation, and what they train for a configuration."""

import dataclasses
import re
from typing import Literal, get_args

from specjax.adapt.configuration import Configuration
from specjax.adapt.objectives import Objective
from specjax.adapt.stage import Stage, served
from specjax.adapt.start import Ranks, Start
from specjax.errors import ConfigError
from specjax.train.optimizer import GroupSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Settings of an adaptation; the defaults were selected on validation stars (see docs/adaptation.md).

    Attributes:
        seeds: random splits, each with an adapter of its own.
        train: training stars of each; by default, by the number of labelled stars (`splits.default_sizes`).
        validate: validation stars of each, likewise; they take part in the selection.
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
        start: where the low-rank factors start, see `start`; "pissa" makes adapters of twice the rank.
        one_split: all seeds share one split and differ in the rest, as in the paper.
        fuse: also average the products of the factors of all seeds into one adapter, and score it beside the
            mean of the seeds' predictions on stars that no seed has trained or been selected on. Only
            configurations of low-rank factors are fused.

    Raises:
        ConfigError: no seeds, fewer than two folds, factors outside 0 to 1, an unknown start, or ranks
            that cannot be read.
    """

    seeds: int = 16
    train: int | None = None
    validate: int | None = None
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
    start: Start = "random"
    one_split: bool = False
    fuse: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"at least one seed is needed, not {self.seeds}")
        if min(self.folds, self.tower_folds) < 2:
            raise ConfigError(f"cross-validation needs at least two folds: {self.folds}, {self.tower_folds}")
        if not all(0 <= scale <= 1 for scale in (*self.head_scales, *self.tower_scales)):
            raise ConfigError("factors on the updates must be between 0 and 1")
        if self.start not in get_args(Start):
            raise ConfigError(f"factors start by {', '.join(get_args(Start))}, not {self.start!r}")
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

    def trainings(self, configuration: Configuration) -> list[tuple[Configuration, Stage]]:
        """Return what is trained for a configuration, with the settings of each training.

        Heads alone come first, then all groups together ("joint") or each group of the tower ("sequential").

        Raises:
            ConfigError: parts of the tower that cannot be trained in a sequence of stages, or an objective
                none of whose terms reaches what is trained.
        """
        heads_only = configuration.part(configuration.head_groups)
        found = [(heads_only, stage) for stage in self.head] if heads_only.groups else []
        if self.objective == "joint":
            found += [(configuration, stage) for stage in self.joint if configuration.tower_groups]
        else:
            found += [self._tower_training(configuration, group) for group in configuration.tower_groups]
        for trained, stage in found:
            served(stage.objective, trained)
        return found

    def _tower_training(self, configuration: Configuration, group: str) -> tuple[Configuration, Stage]:
        """Return how "sequential" trains a group of the tower."""
        stages = {"lora1": self.lora1, "lora3": self.lora3}
        if group not in stages:
            raise ConfigError(
                f"{configuration.name}: only low-rank factors can be trained in a sequence of stages"
                " (the objective sequential)"
            )
        return Configuration.parse(group), stages[group]
