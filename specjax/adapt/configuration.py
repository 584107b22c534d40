"""Names of configurations: which LoRA groups train, and which heads give the label."""

from specjax.config import LORA_GROUPS
from specjax.errors import ConfigError

CONFIGURATIONS = ("zero-shot-mlp1", "lora2", "lora1+lora2", "zero-shot-mlp2", "lora4", "lora1+lora3+lora4")
"""The six rows of the paper's table."""


def parse_configuration(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (groups, heads) of a configuration such as "lora1+lora2" or "zero-shot-mlp2".

    The label comes from MLP1 where LoRA2 is adapted (or LoRA1 alone), from MLP2 where LoRA3 or LoRA4 is, and
    from the mean of both where both are.

    Raises:
        ConfigError: a name that is neither.
    """
    if name in ("zero-shot-mlp1", "zero-shot-mlp2"):
        return (), (name.removeprefix("zero-shot-"),)
    groups = tuple(name.split("+"))
    if not set(groups) <= set(LORA_GROUPS) or len(set(groups)) < len(groups):
        raise ConfigError(
            f"no configuration {name!r}: zero-shot-mlp1, zero-shot-mlp2 or any of {', '.join(LORA_GROUPS)}"
            " joined by +"
        )
    second = "lora3" in groups or "lora4" in groups
    heads = (("mlp1",) if "lora2" in groups or not second else ()) + (("mlp2",) if second else ())
    return tuple(sorted(groups)), heads


def zero_shot_of(name: str) -> str:
    """Return the zero-shot configuration that a row's gain is against: of its head, MLP2 where both."""
    return f"zero-shot-{parse_configuration(name)[1][-1]}"
