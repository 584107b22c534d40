"""`specjax prepare`: convert raw survey files into one file on the model grids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.commands.options_file import FromFile
from specjax.commands.paths import check_exist, check_sources
from specjax.errors import ConfigError
from specjax.interrupt import explained_interrupt
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Prepare(FromFile):
    """Prepare any number of raw files as one HDF5 file for adapt and predict.

    Run the same command again to resume an interrupted run. A table beside the file, FILE.report.ecsv, lists
    everything that is refused, duplicated or flagged, with the reason.
    """

    spectra: Annotated[Positional[tuple[Path, ...]], arg(metavar="SRC")]
    """survey files, or folders that are searched for them to any depth; at least one"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the file to write, .h5 or .hdf5"""
    survey: str | None = None
    """the survey, if it cannot be recognised from the files; naming it also saves time"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """medium of the wavelengths of array files, if the files do not declare it"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """unit of the wavelengths of array files, if the files do not declare it"""
    method: Literal["rebin", "interpolate"] = "rebin"
    """resampling to the LAMOST grid: flux-conserving rebinning, or linear interpolation as published"""
    fwhm_from: float | None = None
    """resolution of the spectra in Angstrom; spectra covering 336-1020 nm then also get a Gaia XP side"""
    fwhm_to: float | None = None
    """resolution in Angstrom to which the spectra are smoothed; that of LAMOST is about 3"""
    velocity_column: str | None = None
    """radial velocities to remove: redshift (v/c) or another column in km/s; by default none are removed"""
    max_masked: float = 0.2
    """fraction of masked pixels above which a spectrum is flagged"""
    xp: tuple[Path, ...] = ()
    """Gaia XP spectra with the same ids, for lora3"""
    workers: int | None = None
    """number of processes, by default the number of cores"""

    def run(self) -> None:
        """Prepare the files, say the counts, and print the path of the prepared file."""
        if not self.spectra:
            raise ConfigError("prepare needs spectra: survey files or folders of them")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"prepare needs at least one worker, not {self.workers}")
        check_exist(xp=self.xp)
        check_sources([*self.spectra, *self.xp], self.out)
        from specjax.prepare import Options, prepare_spectra

        options = Options(
            survey=self.survey,
            wavelength_medium=self.wavelength_medium,
            wavelength_unit=self.wavelength_unit,
            method=self.method,
            fwhm_from=self.fwhm_from,
            fwhm_to=self.fwhm_to,
            velocity_column=self.velocity_column,
            max_masked=self.max_masked,
        )
        with explained_interrupt("finished files are kept: run the same command again to resume"):
            prepare_spectra(
                self.spectra, self.out, options=options, xp=self.xp, workers=self.workers, say=say
            )
        print(self.out)
