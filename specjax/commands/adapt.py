"""`specjax adapt`: a model adapted to a survey, scored on test stars."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specjax.progress import say


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Adapt a model to a survey from about a hundred labelled spectra, and print the scores on test stars.

    The folder gets the table, predictions, plots and the adapters, which `specjax predict` uses.
    """

    spectra: Path
    """a folder of survey files, or an .npz or .h5 file with wavelength, flux and optionally ivar, mask, id"""
    labels: Path
    """a table with the columns id and the label's name"""
    out: Path
    """the run folder to write"""
    model: str = "mini"
    """a model folder; mini is the model that ships"""
    label: str = "fe_h"
    """the label to adapt to, a column of the table and one of the model's labels"""
    configuration: tuple[str, ...] = ("lora4",)
    """one or more of zero-shot-mlp1, lora2, lora1+lora2, zero-shot-mlp2, lora4, lora1+lora3+lora4, ..."""
    seeds: int = 16
    """random splits, each with its own adapter"""
    train: int = 60
    """stars to train on in each split"""
    validate: int = 10
    """stars to validate on; the rest is tested on"""
    survey: str | None = None
    """the survey, where it cannot be recognised from the files"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """what the wavelengths of an array file are measured in, where the file does not say"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """their unit, likewise"""
    xp: Path | None = None
    """Gaia XP spectra of the same ids, for lora3"""
    fwhm: float | None = None
    """resolution of the spectra in Angstrom, to make the Gaia XP side from those that cover 336-1020 nm"""

    def run(self) -> None:
        """Adapt, print the table and the folder."""
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.adapt.adaptation import AdaptConfig
        from specjax.adapt.survey import adapt_survey
        from specjax.report.results import print_table

        rows = adapt_survey(
            model=self.model,
            spectra=self.spectra,
            labels=self.labels,
            out=self.out,
            label=self.label,
            configurations=self.configuration,
            config=AdaptConfig(seeds=self.seeds, train=self.train, validate=self.validate),
            survey=self.survey,
            wavelength_medium=self.wavelength_medium,
            wavelength_unit=self.wavelength_unit,
            xp=self.xp,
            fwhm=self.fwhm,
            say=say,
        )
        print_table(rows)
        print(self.out)
