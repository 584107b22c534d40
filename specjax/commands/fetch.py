"""`specjax fetch`: download spectra and models from services, one subcommand per service."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from specjax.commands.options_file import FromFile
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class StellarLibraries(FromFile):
    """Observed stars of MILES and STELIB, and mean MaStar spectra (121 MB), into $SPECJAX_CACHE."""

    def run(self) -> None:
        """Fetch the libraries and print their folder."""
        from specjax.services.stellar_libraries import fetch_stellar_libraries

        print(fetch_stellar_libraries())


@dataclass(frozen=True, kw_only=True)
class Desi(FromFile):
    """Stars of DESI from the spectral archive SPARCL: spectra.h5 for adapt and predict, and a table.

    The same command with the same folder resumes an interrupted download.
    """

    ids: Annotated[Positional[tuple[str, ...]], arg(metavar="SPARCL_ID")] = ()
    """sparcl_ids, in place of constraints or a table"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the folder to write, or to resume"""
    release: str = "DESI-EDR"
    """DESI-EDR or DESI-DR1"""
    targets: Path | None = None
    """a table with a column sparcl_id, targetid or specid, or with ra and dec in degrees"""
    radius: float = 1.0
    """arcsec within which a position matches a target"""
    spectype: tuple[str, ...] = ("STAR",)
    """classes of spectra: STAR, GALAXY, QSO"""
    redshift: tuple[float, float] | None = None
    """range of redshift (v/c for stars)"""
    ra: tuple[float, float] | None = None
    """range of right ascension in degrees; 350 10 goes through 0"""
    dec: tuple[float, float] | None = None
    """range of declination in degrees"""
    min_snr: float | None = None
    """minimum median signal-to-noise ratio per pixel"""
    limit: int | None = None
    """maximum number of spectra"""
    any_warning: bool = False
    """include spectra with a doubtful redshift"""
    any_visit: bool = False
    """include spectra that are not the primary one of their target"""
    page: int = 100
    """spectra fetched at a time"""
    url: str | None = None
    """another address of the archive; also $SPECJAX_SPARCL_URL"""

    def run(self) -> None:
        """Fetch the spectra and print their file."""
        from specjax.services.desi import fetch_desi
        from specjax.services.desi_search import DesiQuery

        names = {field.name for field in fields(DesiQuery)}
        query = DesiQuery(**{name: value for name, value in vars(self).items() if name in names})
        print(fetch_desi(query, self.out, targets=self.targets, ids=self.ids, url=self.url, say=say))


@dataclass(frozen=True, kw_only=True)
class GaiaXp(FromFile):
    """Gaia XP spectra of sources on 336-1020 nm: spectra.h5 for adapt --xp, and gaia_xp.fits.

    Needs the extra specjax[gaia]. The same command with the same folder resumes an interrupted download.
    """

    ids: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE_ID")] = ()
    """Gaia source ids, in place of a table"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the folder to write, or to resume"""
    targets: Path | None = None
    """a table with a column source_id or gaia_source_id, and optionally id, your own names of the stars"""
    product: Literal["continuous", "sampled"] = "continuous"
    """coefficients calibrated by GaiaXPy, or the archive's own sampled spectra, of fewer sources"""
    page: int = 500
    """sources fetched at a time"""

    def run(self) -> None:
        """Fetch the spectra and print their file."""
        from specjax.services.gaia_xp import fetch_gaia_xp

        print(
            fetch_gaia_xp(
                self.out, ids=self.ids, targets=self.targets, product=self.product, page=self.page, say=say
            )
        )


@dataclass(frozen=True, kw_only=True)
class SpecClip(FromFile):
    """The published SpecCLIP weights from the Hugging Face hub, checked and converted to model folders.

    Label heads are converted on their own; docs/convert.md explains how to attach one to a model.
    """

    source: Annotated[Positional[str], arg(metavar="REPO_OR_FOLDER")] = "astroshawn/SpecCLIP"
    """a repository of the hub, or a folder with its files"""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """folder for the model folders; by default specclip in $SPECJAX_CACHE"""
    only: tuple[str, ...] = ()
    """shell patterns on the names of files, such as '*predrecon_mlp.ckpt'"""
    revision: str | None = None
    """branch, tag or commit of the repository"""

    def run(self) -> None:
        """Fetch and convert the files, and print the folder of the model folders."""
        from checkpoints_convert import convert
        from specjax.services.specclip import fetch_specclip

        print(
            fetch_specclip(
                self.source, self.out, convert=convert, only=self.only, revision=self.revision, say=say
            )
        )


@dataclass(frozen=True, kw_only=True)
class Hub(FromFile):
    """The files of any data set on the Hugging Face hub, checked, with a line on what specjax reads of each.

    Needs the extra specjax[hub]. The same command keeps the files that are there and intact.
    """

    repository: Annotated[Positional[str], arg(metavar="OWNER/NAME")]
    """the data set"""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """folder for the files; by default data/OWNER--NAME in $SPECJAX_CACHE"""
    only: tuple[str, ...] = ()
    """shell patterns on the names of files, such as '*.h5'"""
    revision: str | None = None
    """branch, tag or commit of the data set"""

    def run(self) -> None:
        """Fetch the files and print their folder."""
        from specjax.services.hub_data import fetch_data

        print(fetch_data(self.repository, self.out, only=self.only, revision=self.revision, say=say))


@dataclass(frozen=True, kw_only=True)
class SpecClipTestData(FromFile):
    """The SpecCLIP authors' pairs of LAMOST and Gaia XP spectra (about 10 MB, CC-BY-4.0)."""

    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """folder for the files; by default in $SPECJAX_CACHE"""
    revision: str | None = None
    """branch, tag or commit of the data set"""

    def run(self) -> None:
        """Fetch the files and print their folder."""
        from specjax.services.hub_data import fetch_data
        from specjax.services.specclip import TEST_DATA

        print(fetch_data(TEST_DATA, self.out, revision=self.revision, say=say))


# A further source needs one line here, one below, and a class like those above.
Source = (
    Annotated[StellarLibraries, subcommand("stellar-libraries")]
    | Annotated[Desi, subcommand("desi")]
    | Annotated[GaiaXp, subcommand("gaia-xp")]
    | Annotated[SpecClip, subcommand("specclip")]
    | Annotated[SpecClipTestData, subcommand("specclip-test-data")]
    | Annotated[Hub, subcommand("hub")]
)
SOURCES: dict[str, type[FromFile]] = {
    "stellar-libraries": StellarLibraries,
    "desi": Desi,
    "gaia-xp": GaiaXp,
    "specclip": SpecClip,
    "specclip-test-data": SpecClipTestData,
    "hub": Hub,
}


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download spectra or models, and print where they are."""

    source: OmitSubcommandPrefixes[Annotated[Source, arg(name="")]]

    def run(self) -> None:
        """Fetch from the chosen source."""
        self.source.run()
