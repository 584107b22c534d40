"""Short HTML descriptions of objects, which notebooks show in place of their `repr`."""

from collections.abc import Mapping
from html import escape
from typing import Any


def card(title: str, rows: Mapping[str, Any]) -> str:
    """Return a table of names and values under a title.

    Args:
        title: plain text.
        rows: values by name, shown as plain text; those that are None or empty are left out.

    >>> card("2 spectra", {"survey": "R & D", "S/N": None})
    '<table><caption>2 spectra</caption><tr><th>survey</th><td>R &amp; D</td></tr></table>'
    """
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
        if value not in (None, "")
    )
    return f"<table><caption>{escape(title)}</caption>{lines}</table>"
