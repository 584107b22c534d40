"""Configurations: what is trained, and which heads predict the label."""

from dataclasses import dataclass, replace

from specjax.config import LORA_GROUPS
from specjax.errors import ConfigError
from specjax.lora import HEAD_GROUPS, HEADS

TOWER_LABELS = ("lora1", "lora3", "lamost/backbone", "lamost/projection")
"""What may be trained in the LAMOST tower; the rest is in the label heads."""

PAPER = ("zero-shot-mlp1", "lora2", "lora1+lora2", "zero-shot-mlp2", "lora4", "lora1+lora3+lora4")
"""Names of the six rows of the paper's table."""

_OTHERS = ("zero-shot", "residual", "scratch", "full")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What an adaptation trains and the heads that predict the label.

    Attributes:
        name: as it was given; names rows of the table and folders of adapters.
        groups: labels of `lora.labels_of` of what is trained, sorted; none for zero-shot.
        heads: heads whose predictions are averaged: MLP1 where LoRA2 (or LoRA1 alone) is adapted, MLP2 where
            LoRA3 or LoRA4 is.
        from_scratch: the head starts from random parameters.
    """

    name: str
    groups: tuple[str, ...]
    heads: tuple[str, ...]
    from_scratch: bool = False

    @classmethod
    def parse(cls, name: str) -> "Configuration":
        """Return the configuration of a name.

        Names are groups of low-rank factors joined by "+", or a kind and a head: zero-shot-mlp1,
        residual-mlp1 (a network added to the head), scratch-mlp1 (a new head), full-mlp1 (head and tower
        without low-rank factors), and the same with mlp2.

        >>> Configuration.parse("lora1+lora2").heads
        ('mlp1',)

        Raises:
            ConfigError: any other name.
        """
        kind, _, head = name.rpartition("-")
        if kind in _OTHERS and head in HEADS:
            tower = ("lamost/backbone", "lamost/projection")[: HEADS.index(head) + 1]
            groups = {"residual": (f"residual/{head}",), "scratch": (head,), "full": (*tower, head)}
            return cls(name=name, groups=groups.get(kind, ()), heads=(head,), from_scratch=kind == "scratch")
        groups_of_name = tuple(sorted(name.split("+")))
        if not set(groups_of_name) <= set(LORA_GROUPS) or len(set(groups_of_name)) < len(groups_of_name):
            raise ConfigError(
                f"no configuration {name!r}: use any of {', '.join(LORA_GROUPS)} joined by +, or one of"
                f" {', '.join(_OTHERS)} followed by -mlp1 or -mlp2"
            )
        second = "lora3" in groups_of_name or "lora4" in groups_of_name
        heads = (("mlp1",) if "lora2" in groups_of_name or not second else ()) + (("mlp2",) if second else ())
        return cls(name=name, groups=groups_of_name, heads=heads)

    @property
    def is_adapted(self) -> bool:
        """Whether anything is trained."""
        return bool(self.groups)

    @property
    def tower_groups(self) -> tuple[str, ...]:
        """What is trained in the LAMOST tower."""
        return tuple(group for group in self.groups if group in TOWER_LABELS)

    @property
    def head_groups(self) -> tuple[str, ...]:
        """What is trained in the label heads."""
        return tuple(group for group in self.groups if group not in TOWER_LABELS)

    @property
    def lora_groups(self) -> tuple[str, ...]:
        """The groups of low-rank factors that are trained."""
        return tuple(group for group in self.groups if group in LORA_GROUPS)

    @property
    def can_be_fused(self) -> bool:
        """Whether only low-rank factors are trained, whose products can be averaged over seeds."""
        return self.is_adapted and self.lora_groups == self.groups

    @property
    def zero_shot(self) -> "Configuration":
        """The zero-shot configuration that gains are measured against: of its head, MLP2 if it has both."""
        return Configuration.parse(f"zero-shot-{self.heads[-1]}")

    def part(self, groups: tuple[str, ...]) -> "Configuration":
        """Return a configuration that trains some of these groups, with the same heads."""
        return replace(self, groups=groups)

    def head_group(self, head: str) -> str | None:
        """Return the group of low-rank factors that adapts a head; None if there is none."""
        group = HEAD_GROUPS[head]
        return group if group in self.groups else None
