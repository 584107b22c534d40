"""Outputs of an executed tutorial as Markdown and pictures."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from website.cells import Cell

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def rendered(cells: Sequence[Cell], notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Return a tutorial as Markdown with the outputs below its cells, and the pictures by file name.

    Args:
        cells: the cells of the page.
        notebook: the same cells, executed.
        name: of the page; pictures are named after it.
    """
    pieces: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell, ran in zip(cells, notebook.cells, strict=True):
        pieces.append(cell.fenced)
        for output in _joined(ran.get("outputs", [])):
            png = output.get("data", {}).get("image/png")
            if png is None:
                pieces.append(_block(output))
            else:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(png)
                pieces.append(f'<div class="output" markdown>\n\n![output]({file})\n\n</div>\n')
    return "\n".join(piece for piece in pieces if piece), pictures


def _joined(outputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Join pieces of text that follow each other, of whichever stream: a kernel sends them as they come."""
    joined: list[Any] = []
    for output in outputs:
        if "text" in output and joined and "text" in joined[-1]:
            joined[-1] = {"text": joined[-1]["text"] + output["text"]}
        else:
            joined.append(output)
    return joined


def _block(output: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        table = re.sub(r"<table[^>]*>", "<table>", table)  # the style is for those without a class
        lines = [line.strip() for line in table.splitlines() if line.strip()]
        return '<div class="output">\n' + "\n".join(lines) + "\n</div>\n"
    text = _COLOURS.sub("", output.get("text", "") or data.get("text/plain", "")).rstrip()
    return f'<div class="output" markdown>\n\n````text\n{text}\n````\n\n</div>\n' if text else ""
