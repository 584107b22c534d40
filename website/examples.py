"""An extension of griffe, which reads docstrings: examples get the heading that makes them examples."""

import textwrap
from typing import Any

import griffe


def with_heading(docstring: str) -> str:
    r"""Return a docstring whose paragraphs of examples stand under a heading.

    >>> with_heading("Double.\n\n>>> double(2)\n4")
    'Double.\n\nExamples:\n    >>> double(2)\n    4'
    """
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        "Examples:\n" + textwrap.indent(paragraph, "    ") if paragraph.startswith(">>> ") else paragraph
        for paragraph in paragraphs
    )


class Examples(griffe.Extension):
    """Applies `with_heading` to all docstrings."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of an object that has been loaded."""
        if obj.docstring is not None:
            obj.docstring.value = with_heading(obj.docstring.value)
