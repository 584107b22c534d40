"""Tutorials as Markdown pages whose code blocks are the cells of a notebook."""

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^```(python|sh)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A piece of a page.

    Attributes:
        language: "python" or "sh" for a block that is executed, "markdown" for text.
        source: The code without its fence, or the text.
    """

    language: str
    source: str

    @property
    def is_code(self) -> bool:
        """Whether the cell is executed."""
        return self.language != "markdown"

    @property
    def notebook_source(self) -> str:
        """The cell as it stands in a notebook, where shell commands need a magic command."""
        return f"%%script sh -e\n{self.source}" if self.language == "sh" else self.source

    @property
    def fenced(self) -> str:
        """The cell as Markdown."""
        return f"```{self.language}\n{self.source}```\n" if self.is_code else self.source


def split_cells(text: str) -> list[Cell]:
    r"""Split a page into text and the blocks of Python and shell code that are executed.

    Blocks of other languages, and blocks that are indented, are text.

    >>> [cell.language for cell in split_cells("Text\n```python\n1 + 1\n```\nmore\n")]
    ['markdown', 'python', 'markdown']
    """
    cells, end = [], 0
    for fence in _FENCE.finditer(text):
        cells += [Cell("markdown", text[end : fence.start()]), Cell(fence[1], fence[2])]
        end = fence.end()
    cells.append(Cell("markdown", text[end:]))
    return [cell for cell in cells if cell.source.strip()]
