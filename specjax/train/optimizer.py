"""The partitioned optimizer: `optax.multi_transform` with a schedule per group, everything else frozen."""

import dataclasses
from collections.abc import Mapping

import jax
import optax

from specjax.lora import partition_labels
from specjax.train.schedules import warmup_cosine_adamw
from specjax.typing import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSchedule:
    """AdamW of one group: linear warm-up to `learning_rate`, then cosine decay to `final` times that."""

    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.05
    final: float = 0.0

    def __call__(self, steps: int) -> optax.GradientTransformation:
        """Make the transformation for a run of that many steps."""
        return warmup_cosine_adamw(steps, **dataclasses.asdict(self))


def make_optimizer(
    schedules: Mapping[str, GroupSchedule], *, steps: int, clip: float = 1.0
) -> optax.GradientTransformation:
    """Make the optimizer of a model, or of a subtree of it.

    Groups are those of `lora.partition_labels`. A group without a schedule is frozen with `set_to_zero` and
    has no optimizer state. The global norm that `clip` bounds is that of each scheduled group alone: a group
    is masked to its own leaves before clipping, so that frozen leaves cost nothing and change nothing.
    """

    def label(params: Tree) -> Tree:
        groups = partition_labels(params)
        return jax.tree.map(lambda group: group if group in schedules else "frozen", groups)

    transforms = {
        group: optax.chain(optax.clip_by_global_norm(clip), schedule(steps))
        for group, schedule in schedules.items()
    }
    transforms["frozen"] = optax.set_to_zero()
    return optax.multi_transform(transforms, label)
