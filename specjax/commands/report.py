"""`specjax report`: write the HTML report of a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from specjax.commands.options_file import FromFile


@dataclass(frozen=True, kw_only=True)
class Report(FromFile):
    """Write report.html into the folder of a run of `specjax adapt`: one file with all tables and figures."""

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """run folder"""

    def run(self) -> None:
        """Write the page; print its path."""
        from specjax.report.page import write_page

        print(write_page(self.folder))
