"""`specjax translate`: spectra of one survey from those of another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from specjax.commands.many import ManySpectra
from specjax.commands.paths import check_sources
from specjax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Translate(ManySpectra):
    """Predict the Gaia XP spectra of stars from their LAMOST-like spectra, or the other way round.

    Needs a model with both towers and decoders: mini, mini-physics, or the published "predrecon" and "split".
    Run the same command again to resume an interrupted run. Files that cannot be read are left out and listed
    in OUT.report.ecsv.
    """

    out: Annotated[Path, arg(aliases=("-o",))]
    """file to write: .h5, .npz, .parquet or .fits"""
    to: Literal["gaia_xp", "lamost"]
    """what comes out: gaia_xp, flux over that at 550 nm, 336 to 1020 nm; or lamost, flux over the continuum,
    4000 to 5599 A"""
    truth: Path | None = None
    """observed spectra of what comes out, for some of the stars, joined on id: the errors by star are written
    to OUT.errors.ecsv and drawn"""
    plots: int = 6
    """number of spectra in the plot OUT.png and OUT.pdf; 0 for no plot"""

    def run(self) -> None:
        """Translate the spectra and print the path of the file."""
        options = self.options("translate", self.out)
        if self.truth is not None:
            check_sources([self.truth], self.out)
        if self.plots < 0:
            raise ConfigError(f"translate cannot plot {self.plots} spectra")
        from specjax.arenas import share_arenas
        from specjax.cache import use_compilation_cache

        share_arenas()
        use_compilation_cache()
        from specjax.pipeline.translate import translate_survey

        translate_survey(**options, target=self.to, truth=self.truth, plots=self.plots, out=self.out)
        if not self.dry_run:
            print(self.out)
