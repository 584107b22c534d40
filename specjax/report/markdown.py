"""Markdown tables, and the header of a Markdown page that a hub reads."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def yaml_header(header: Mapping[str, Any]) -> str:
    """Return YAML; its values are written as JSON, which is YAML."""
    lines = []
    for name, value in header.items():
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            lines += [f"{name}:", *(f"- {json.dumps(each)}" for each in value)]
        else:
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
