"""The partitioned optimizer: `optax.multi_transform` with a schedule per group, everything else frozen."""

import dataclasses
from collections.abc import Iterable, Mapping

import optax

from specjax.lora import partition_labels
from specjax.train.schedules import warmup_cosine_adamw
from specjax.typing import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSchedule:
    """AdamW of one group: linear warm-up to `learning_rate`, then cosine decay to `final` times that.

    `clip` bounds the norm of the group's gradient.
    """

    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.05
    final: float = 0.0
    clip: float = 1.0

    def __call__(self, steps: int) -> optax.GradientTransformation:
        """Make the transformation for a run of that many steps."""
        about = dataclasses.asdict(self)
        return optax.chain(optax.clip_by_global_norm(about.pop("clip")), warmup_cosine_adamw(steps, **about))


def factor_schedules(
    groups: Iterable[str], schedule: GroupSchedule, *, ratio: float = 1.0, freeze_a: bool = False
) -> dict[str, GroupSchedule]:
    """Return the schedules of groups of low-rank factors by label, for `make_optimizer`.

    Args:
        groups: "lora1" to "lora4".
        schedule: of both factors.
        ratio: learning rate of B over that of A, as in LoRA+ (arXiv 2402.12354).
        freeze_a: train B only, as in LoRA-FA (arXiv 2308.03303).
    """
    if not freeze_a and ratio == 1:
        return dict.fromkeys(groups, schedule)
    larger = dataclasses.replace(schedule, learning_rate=ratio * schedule.learning_rate)
    schedules: dict[str, GroupSchedule] = {}
    for group in groups:
        schedules |= {f"{group}/b": larger} if freeze_a else {f"{group}/a": schedule, f"{group}/b": larger}
    return schedules


def make_optimizer(schedules: Mapping[str, GroupSchedule], *, steps: int) -> optax.GradientTransformation:
    """Make the optimizer of a model, or of a subtree of it.

    The keys of `schedules` are labels of `lora.labels_of`: groups, or finer parts of them, which go first. A
    leaf without a schedule is frozen with `set_to_zero` and has no optimizer state. The global norm that
    `clip` bounds is that of the leaves of one label alone: they are masked before clipping, so that frozen
    leaves cost nothing and change nothing.
    """

    def label(params: Tree) -> Tree:
        return partition_labels(params, schedules)

    transforms = {name: schedule(steps) for name, schedule in schedules.items()}
    transforms["frozen"] = optax.set_to_zero()
    return optax.multi_transform(transforms, label)
