"""`specjax prepare`: raw survey files as one file on the model grids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Prepare raw files, any number of them, as one HDF5 file for adapt and predict.

    The same command again goes on with a run that was cut short. What could not be used, and why, is in a
    table beside the file, FILE.report.ecsv.
    """

    spectra: Annotated[Positional[tuple[Path, ...]], arg(metavar="SRC")]
    """survey files, and folders of them to any depth; at least one"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the file to write, .h5 or .hdf5"""
    survey: str | None = None
    """the survey, where it cannot be recognised from the files (naming it saves time, too)"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """what the wavelengths of array files are measured in, where the files do not say"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """their unit, likewise"""
    method: Literal["rebin", "interpolate"] = "rebin"
    """to the LAMOST grid by flux-conserving rebinning, or by linear interpolation as published"""
    fwhm_from: float | None = None
    """resolution of the spectra in Angstrom; those that cover 336-1020 nm then get a Gaia XP side, too"""
    fwhm_to: float | None = None
    """resolution in Angstrom to lower them to; LAMOST's is about 3"""
    velocity_column: str | None = None
    """radial velocities to take out: redshift (v/c), or another column, in km/s; none are by default"""
    max_masked: float = 0.2
    """share of masked pixels above which a spectrum is flagged"""
    xp: tuple[Path, ...] = ()
    """Gaia XP spectra of the same ids, for lora3"""
    workers: int | None = None
    """processes; as many as there are cores by default"""

    def run(self) -> None:
        """Prepare, say what became of the files, and print the file."""
        if not self.spectra:
            raise ConfigError("prepare needs spectra: a survey's files or folders")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"prepare needs at least one worker, not {self.workers}")
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
        prepare_spectra(self.spectra, self.out, options=options, xp=self.xp, workers=self.workers, say=say)
        print(self.out)
