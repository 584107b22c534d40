"""`specjax simulate`: simulate a survey with known labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from specjax.commands.options_file import FromFile
from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Simulate(FromFile):
    """Simulate spectra of stars with known labels, as an instrument would observe them.

    A table of the true labels, NAME_labels.ecsv, is written beside the spectra. Both are input of `specjax
    adapt`, and say in their metadata that they are simulated.
    """

    instrument: str
    """lamost, desi, boss, grism, or a .toml file with fields of `specjax.simulate.instrument.Instrument`"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """file to write, .h5, or .npz for a few thousand spectra"""
    n: int | None = None
    """number of spectra; by default that of the table of --population"""
    population: Path | None = None
    """table of the stars to simulate: teff, logg, fe_h, optionally alpha_fe, vmicro, velocity, id"""
    skip_outside: bool = False
    """leave out stars of the table that the emulator cannot simulate"""
    ranges: tuple[str, ...] = ()
    """labels uniform in ranges, such as --ranges "teff 4500 6500" "logg 4 5"; by default, stars are like
    those of the Milky Way"""
    snr: tuple[float, float] | None = None
    """smallest and largest signal-to-noise ratio per pixel, in place of those of the instrument"""
    seed: int = 0
    """seed of stars, errors and noise"""

    def run(self) -> None:
        """Simulate the survey, and print the paths of spectra and labels."""
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.simulate.emulator import shipped
        from specjax.simulate.instrument import Instrument
        from specjax.simulate.population import LabelTable, MilkyWay, Population, Ranges
        from specjax.simulate.survey import simulate_survey

        instrument = Instrument.get(self.instrument)
        if self.snr is not None:
            instrument = instrument.with_snr(*self.snr)
        if self.population is not None and self.ranges:
            raise ConfigError("simulate takes a table of stars or ranges of labels, not both")
        stars: Population = Ranges.parse(self.ranges) if self.ranges else MilkyWay()
        n = self.n
        if self.population is not None:
            stars = LabelTable.read(self.population, shipped().domain, skip_outside=self.skip_outside)
            n = len(stars) if n is None else n
            if stars.skipped:
                total = len(stars) + stars.skipped
                say(f"left out {stars.skipped} of {total} stars, which the emulator cannot simulate")
        if n is None:
            raise ConfigError("simulate needs the number of spectra, --n")
        table = simulate_survey(
            self.out, instrument=instrument, n=n, population=stars, seed=self.seed, say=say
        )
        print(self.out)
        print(table)
