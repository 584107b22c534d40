"""`specjax label`: label the spectra of a survey from a catalogue."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.commands.options_file import FromFile
from specjax.commands.paths import check_sources
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Label(FromFile):
    """Match spectra to a catalogue of labels, on the sky or by id, and write one row per spectrum.

    The catalogue is APOGEE's allStar, or with --columns any table. `specjax adapt` takes the result directly;
    `specjax split` adds the training, validation and test stars.
    """

    spectra: Annotated[Positional[Path], arg(metavar="SPECTRA")]
    """a survey's files or folder, as for adapt"""
    catalogue: Path
    """allStar-dr17-synspec_rev1.fits; with --columns any table that astropy reads"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the table to write: .ecsv, .fits, .vot, .parquet or .csv"""
    cuts: tuple[Literal["starflag", "m_h", "star", "snr"], ...] = ("starflag", "m_h", "star", "snr")
    """quality cuts on allStar: STARFLAG is 0; M_H_BAD, STAR_BAD not set in ASPCAPFLAG; S/N above 50"""
    columns: str | None = None
    """the columns of the catalogue: fe_h=fe_h,fe_h_err=e_fe_h,teff=teff,id=sobject_id,ra=ra,dec=dec"""
    where: tuple[str, ...] = ()
    """with --columns, conditions on the catalogue: "flag_sp == 0" "snr_c2_iraf > 30" "flags & 8 == 0" """
    radius: float = 1.0
    """arcsec within which two positions match"""
    on: str | None = None
    """match ids instead of positions: the column with the spectra's ids, for example gaia_source_id"""
    survey: str | None = None
    """the survey, if the files do not identify it, or desi-stars"""

    def run(self) -> None:
        """Read, match and write, report the numbers of rows on stderr, and print the path of the table."""
        check_sources([self.spectra, self.catalogue], self.out)
        from specjax.catalogues.matching import label_files

        label_files(
            self.spectra,
            self.catalogue,
            self.out,
            cuts=self.cuts,
            columns=self.columns,
            where=self.where,
            radius=self.radius,
            on=self.on,
            survey=self.survey,
            say=say,
        )
        print(self.out)
