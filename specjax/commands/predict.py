"""`specjax predict`: labels of spectra from an adapted model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict labels of spectra with an adapted model; the error of each is in the table."""

    spectra: Positional[tuple[Path, ...]]
    """survey files or folders, as for adapt; at least one"""
    adapter: Path
    """an adapter folder, RUN/adapters/TARGET/CONFIGURATION"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """the table to write: .ecsv, .fits, .parquet or .csv"""
    model: str = "mini"
    """the model that the adapter was trained on"""
    survey: str | None = None
    """the survey, where it cannot be recognised from the files"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """what the wavelengths of an array file are measured in, where the file does not say"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """their unit, likewise"""

    def run(self) -> None:
        """Predict and print the table's path."""
        if not self.spectra:
            raise ConfigError("predict needs spectra: a survey's files or folders")
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.adapt.predict import predict_survey

        predict_survey(
            model=self.model,
            adapter=self.adapter,
            spectra=self.spectra,
            out=self.out,
            survey=self.survey,
            wavelength_medium=self.wavelength_medium,
            wavelength_unit=self.wavelength_unit,
            say=say,
        )
        print(self.out)
