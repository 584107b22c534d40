"""Configurations: which groups of low-rank factors are adapted, and which heads predict the label."""

from dataclasses import dataclass

from specjax.config import LORA_GROUPS
from specjax.errors import ConfigError
from specjax.lora import HEAD_GROUPS

TOWER_GROUPS = ("lora1", "lora3")
"""The groups in the LAMOST tower; the others are in the label heads."""

PAPER = ("zero-shot-mlp1", "lora2", "lora1+lora2", "zero-shot-mlp2", "lora4", "lora1+lora3+lora4")
"""Names of the six rows of the paper's table."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The groups that an adaptation trains and the heads that predict the label.

    Attributes:
        name: as it was given; names rows of the table and folders of adapters.
        groups: groups of low-rank factors that are trained, sorted; none for zero-shot.
        heads: heads whose predictions are averaged: MLP1 where LoRA2 (or LoRA1 alone) is adapted, MLP2 where
            LoRA3 or LoRA4 is.
    """

    name: str
    groups: tuple[str, ...]
    heads: tuple[str, ...]

    @classmethod
    def parse(cls, name: str) -> "Configuration":
        """Return the configuration of a name: zero-shot-mlp1, zero-shot-mlp2, or groups joined by "+".

        >>> Configuration.parse("lora1+lora2").heads
        ('mlp1',)

        Raises:
            ConfigError: any other name.
        """
        if name in ("zero-shot-mlp1", "zero-shot-mlp2"):
            return cls(name=name, groups=(), heads=(name.removeprefix("zero-shot-"),))
        groups = tuple(sorted(name.split("+")))
        if not set(groups) <= set(LORA_GROUPS) or len(set(groups)) < len(groups):
            raise ConfigError(
                f"no configuration {name!r}: use zero-shot-mlp1, zero-shot-mlp2 or any of"
                f" {', '.join(LORA_GROUPS)} joined by +"
            )
        second = "lora3" in groups or "lora4" in groups
        heads = (("mlp1",) if "lora2" in groups or not second else ()) + (("mlp2",) if second else ())
        return cls(name=name, groups=groups, heads=heads)

    @property
    def is_adapted(self) -> bool:
        """Whether anything is trained."""
        return bool(self.groups)

    @property
    def tower_groups(self) -> tuple[str, ...]:
        """The groups that are trained in the LAMOST tower."""
        return tuple(group for group in self.groups if group in TOWER_GROUPS)

    @property
    def needs_xp(self) -> bool:
        """Whether Gaia XP spectra are needed, as they are to align the projection."""
        return "lora3" in self.groups

    @property
    def zero_shot(self) -> "Configuration":
        """The zero-shot configuration that gains are measured against: of its head, MLP2 if it has both."""
        return Configuration.parse(f"zero-shot-{self.heads[-1]}")

    def head_group(self, head: str) -> str | None:
        """Return the group that adapts a head; None if it is not adapted."""
        group = HEAD_GROUPS[head]
        return group if group in self.groups else None
