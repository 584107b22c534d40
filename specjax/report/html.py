"""HTML elements for a page that is one file: escaped text, tables, and images within the page."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from specjax.overwrite import GENERATOR

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem;
  margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; font-weight: bold; padding: 0.5rem 0; }
caption, th[scope="row"] { position: sticky; left: 0; background: #fff; }
caption { max-width: calc(100vw - 2rem); box-sizing: border-box; }
dt { font-weight: bold; } dd { margin: 0 0 0.4rem 1.5rem; } summary { cursor: pointer; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.baseline td, tr.baseline th { color: #666; }
td.best { font-weight: bold; } td.gain { color: #00664a; } td.loss { color: #a34700; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 0.9rem; }
ul.warnings li { margin: 0.4rem 0; } .warnings li::marker { color: #d55e00; content: "\\25B2  "; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.75rem; white-space: pre-wrap; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; } details { display: block; }
  figure, table, tr { break-inside: avoid; } h2 { break-after: avoid; }
}
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page; it refers to no other file."""
    content = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def element(tag: str, content: str = "", **attributes: str) -> str:
    """Return an element with content that is HTML already; `class_` is the attribute class.

    >>> element("p", "a &lt; b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    given = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items() if value)
    return f"<{tag}{given}>{content}</{tag}>"


def text(tag: str, content: Any, **attributes: str) -> str:
    """Return an element with plain text."""
    return element(tag, escape(str(content)), **attributes)


def section(title: str, *content: str) -> str:
    """Return a section with a heading; "" without content."""
    found = [part for part in content if part]
    return element("section", "\n".join([text("h2", title), *found])) if found else ""


def bullets(lines: Sequence[str], **attributes: str) -> str:
    """Return a list of plain texts; "" without any."""
    return element("ul", "".join(text("li", line) for line in lines), **attributes) if lines else ""


def folded(title: str, entries: Mapping[str, str]) -> str:
    """Return a list of terms and their meanings that a click unfolds; "" without any."""
    listed = "".join(text("dt", term) + text("dd", meaning) for term, meaning in entries.items())
    return element("details", text("summary", title) + element("dl", listed)) if entries else ""


def table(
    headings: Sequence[str],
    rows: Iterable[tuple[str, Sequence[tuple[str, str]]]],
    *,
    caption: str = "",
) -> str:
    """Return a table whose first column names the rows and whose others hold numbers.

    Args:
        headings: of all columns.
        rows: (class, cells) of each row; a cell is (class, text).
        caption: above the table.
    """
    kinds = ["", *["number"] * (len(headings) - 1)]
    head = "".join(
        text("th", heading, scope="col", class_=kind) for heading, kind in zip(headings, kinds, strict=True)
    )
    body = []
    for row_class, ((_, name), *cells) in rows:
        found = [text("th", name, scope="row")]
        found += [text("td", content, class_=f"number {kind}".strip()) for kind, content in cells]
        body.append(element("tr", "".join(found), class_=row_class))
    top = text("caption", caption) if caption else ""
    whole = f"{top}<thead>{element('tr', head)}</thead><tbody>{''.join(body)}</tbody>"
    return element("div", element("table", whole), class_="wide")


def image(path: Path, description: str) -> str:
    """Return a PNG within the page, with its description as caption."""
    data = base64.b64encode(path.read_bytes()).decode()
    picture = f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'
    return element("figure", f"{picture}{text('figcaption', description)}")


def settings(values: Mapping[str, Any]) -> str:
    """Return nested settings as a list; what has many entries can be folded out."""
    return element("ul", "".join(_setting(name, value) for name, value in values.items()))


def _setting(name: str, value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        value = {str(number): item for number, item in enumerate(value, start=1)}
    if isinstance(value, Mapping) and value:
        summary = element("summary", f"{escape(name)} ({len(value)})")
        return element("li", element("details", f"{summary}{settings(value)}"))
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    shown = "-" if value is None or value in ("", {}) else value
    return element("li", f"{escape(name)}: {text('code', shown)}")
