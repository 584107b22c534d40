"""What the files of a model folder say of it: its name, labels, sizes, and how it was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specjax.checkpoints import Stored, flatten
from specjax.report.markdown import table


def model_facts(stored: Stored) -> str:
    """Return a table of a model's name, labels, parameters by part, and digest."""
    config = stored.config.get("model", {})
    parts = _counts(stored.arrays.get("params", {}))
    rows = [
        ("name", config.get("name", "")),
        ("labels", ", ".join(config.get("labels", []))),
        ("parameters", f"{sum(parts.values()):,}"),
        *((f"- {name}", f"{count:,}") for name, count in parts.items()),
        ("digest", f"`{stored.digest}`"),
    ]
    return table(("", ""), rows)


def model_training(stored: Stored) -> str:
    """Return what the configuration of a model records of its training and of the files it came from."""
    lines = []
    for name, source in stored.config.get("sources", {}).items():
        lines.append(f"- {name}: converted from {source['file']}, SHA-256 `{source['sha256']}`")
    training = stored.config.get("training", {})
    lines += [f"- {name}: {_plain(value)}" for name, value in training.items() if _is_short(value)]
    stages = {name: value["steps"] for name, value in training.items() if _has_steps(value)}
    if stages:
        lines.append("- steps: " + ", ".join(f"{name} {count}" for name, count in stages.items()))
    return "\n".join(["How it was made, as config.json records it:", "", *lines]) if lines else ""


def _counts(params: Mapping[str, Any]) -> dict[str, int]:
    """Count the parameters of each part of a model; towers are split into encoder and projection."""
    counts: dict[str, int] = {}
    for path, leaf in flatten(params):
        names = path.split("/")
        part = "/".join(names[:2] if names[0] in ("lamost", "gaia_xp") else names[:1])
        counts[part] = counts.get(part, 0) + int(np.size(leaf))
    return counts


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
    )


def _has_steps(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value.get("steps"))


def _plain(value: Any) -> str:
    """Return a setting in words; of paths only the last part."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(Path(each).name if isinstance(each, str) else str(each) for each in values)
