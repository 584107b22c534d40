"""`specjax predict`: predict labels of spectra with an adapted model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from specjax.errors import ConfigError
from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict labels of spectra with an adapted model, and write them with their uncertainties to a table."""

    spectra: Positional[tuple[Path, ...]]
    """survey files or folders, as for `specjax adapt`; at least one"""
    adapter: Path
    """adapter folder, such as RUN/adapters/TARGET/CONFIGURATION"""
    out: Annotated[Path, arg(aliases=("-o",))]
    """table to write: .ecsv, .fits, .parquet or .csv"""
    model: str = "mini"
    """model folder the adapter was trained on, or mini for the model that ships with specjax"""
    survey: str | None = None
    """name of the survey, if it cannot be recognised from the files"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """medium of the wavelengths in an .npz or .h5 file that does not specify it"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """unit of the wavelengths in an .npz or .h5 file that does not specify it"""

    def run(self) -> None:
        """Predict labels and print the path of the table."""
        if not self.spectra:
            raise ConfigError("predict needs spectra: give survey files or folders")
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
