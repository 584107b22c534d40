"""Descriptions as aligned lines of text; imports nothing that takes time."""

from collections.abc import Mapping
from typing import Any


def format_description(description: Mapping[str, Any], indent: str = "") -> str:
    """Format a description as aligned lines, with thousands separated."""
    width = max((len(key) for key in description), default=0)
    lines = []
    for key, value in description.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}", format_description(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_text(value)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """Format one value for display."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
