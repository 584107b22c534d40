"""Options of the commands that read spectra for a model."""

from dataclasses import dataclass
from typing import Any, Literal

from specjax.commands.options_file import FromFile


@dataclass(frozen=True, kw_only=True)
class Reading(FromFile):
    """The model, and how spectra are read for it."""

    model: str = "mini"
    """model folder, hf://OWNER/NAME, or mini or mini-physics for a model that ships with specjax"""
    fwhm: float | None = None
    """resolution of raw spectra in Angstrom, if it is much lower than that of LAMOST"""
    survey: str | None = None
    """name of the survey, if it cannot be recognised from the files; naming it also saves time"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """medium of the wavelengths of files that do not declare it (default: vacuum)"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """unit of the wavelengths of files that do not declare it (default: Angstrom)"""

    def reading(self) -> dict[str, Any]:
        """Return these options as arguments of the functions of `specjax.pipeline`."""
        return {
            "model": self.model,
            "fwhm": self.fwhm,
            "survey": self.survey,
            "wavelength_medium": self.wavelength_medium,
            "wavelength_unit": self.wavelength_unit,
        }
