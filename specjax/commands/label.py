"""`specjax label`: a catalogue's labels for the spectra of a survey."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Label:
    """Match spectra to a catalogue of labels, on the sky or by id, and write a row for each spectrum.

    The catalogue is APOGEE's allStar, or with --columns any table. `specjax adapt` takes the result as it is;
    `specjax split` adds who trains, validates and tests.
    """

    spectra: Annotated[Positional[Path], arg(metavar="SPECTRA")]
    """a survey's files or folder, as for adapt"""
    catalogue: Path
    """allStar-dr17-synspec_rev1.fits; with --columns any table that astropy reads"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the table to write: .ecsv, .fits, .parquet or .csv"""
    cuts: tuple[Literal["starflag", "m_h", "star", "snr"], ...] = ("starflag", "m_h", "star", "snr")
    """quality cuts on allStar: STARFLAG is 0; M_H_BAD, STAR_BAD unset in ASPCAPFLAG; S/N above 50"""
    columns: str | None = None
    """what a catalogue calls its columns: fe_h=fe_h,fe_h_err=e_fe_h,teff=teff,id=sobject_id,ra=ra,dec=dec"""
    where: tuple[str, ...] = ()
    """with --columns, conditions on the catalogue: "flag_sp == 0" "snr_c2_iraf > 30" "flags & 8 == 0" """
    radius: float = 1.0
    """arcsec within which two positions are the same star"""
    on: str | None = None
    """match ids instead of positions: the column that holds the spectra's ids, e.g. gaia_source_id"""
    survey: str | None = None
    """the survey, where it cannot be recognised from the files, or desi-stars"""

    def run(self) -> None:
        """Read, match, write; say what became of the rows on stderr and print the table's path."""
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
