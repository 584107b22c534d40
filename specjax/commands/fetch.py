"""`specjax fetch`: data and models from services, one subcommand each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitSubcommandPrefixes, arg, subcommand

from specjax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StellarLibraries:
    """The observed stars of MILES and STELIB, and mean MaStar spectra (121 MB), into $SPECJAX_CACHE."""

    def run(self) -> None:
        """Fetch and print the folder."""
        from specjax.surveys.libraries import fetch_stellar_libraries

        print(fetch_stellar_libraries())


@dataclass(frozen=True, kw_only=True)
class Desi:
    """Stars of DESI from the spectral archive SPARCL."""

    out: Path
    """the folder to write"""

    def run(self) -> None:
        """Fetch and print the folder."""
        raise ConfigError("fetch desi is not there yet")


# A source is one line here and a class like those above.
Source = Annotated[StellarLibraries, subcommand("stellar-libraries")] | Annotated[Desi, subcommand("desi")]


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download spectra, labels or models, and print where they are."""

    source: OmitSubcommandPrefixes[Annotated[Source, arg(name="")]]

    def run(self) -> None:
        """Fetch from the chosen source."""
        self.source.run()
