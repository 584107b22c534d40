"""`specjax embed`: the vectors of spectra in the space of a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from specjax.commands.many import ManySpectra


@dataclass(frozen=True, kw_only=True)
class Embed(ManySpectra):
    """Embed any number of spectra with a model, and write their vectors with ids and flags to a file.

    Run the same command again to resume an interrupted run. Files that cannot be read are left out and listed
    in OUT.report.ecsv.
    """

    out: Annotated[Path, arg(aliases=("-o",))]
    """file to write: .h5, .parquet, .fits or .npz"""
    tokens: bool = False
    """write all tokens of each spectrum instead of one vector"""

    def run(self) -> None:
        """Embed the spectra and print the path of the file."""
        options = self.options("embed", self.out)
        from specjax.arenas import share_arenas
        from specjax.cache import use_compilation_cache

        share_arenas()
        use_compilation_cache()
        from specjax.pipeline.embed import embed_survey

        embed_survey(**options, tokens=self.tokens, out=self.out)
        if not self.dry_run:
            print(self.out)
