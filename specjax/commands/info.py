"""`specjax info`: describe a preset, a model folder or a file of spectra."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from specjax.commands.options_file import FromFile
from specjax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Info(FromFile):
    """Describe a preset, a model folder or a file of spectra."""

    file: Annotated[Positional[Path | None], arg(metavar="SPECTRA")] = None
    """a survey's files, to see what `specjax adapt` would read"""
    preset: str | None = None
    """parameter counts of a preset: paper, base, split, xp-transformer, mini or mini-physics"""
    model: str | None = None
    """contents of a model folder or hf://OWNER/NAME; mini is the model that ships with specjax"""
    survey: str | None = None
    """the survey of the files, if it cannot be recognised"""
    wavelength_medium: Literal["vacuum", "air"] | None = None
    """medium of the wavelengths in an array file or table that does not declare it"""
    wavelength_unit: Literal["angstrom", "nm", "um", "log10"] | None = None
    """unit of the wavelengths, likewise"""
    json: bool = False
    """print JSON"""

    def run(self) -> None:
        """Print the description."""
        from specjax.report.aligned import format_description

        description = self._describe()
        print(json_module.dumps(description, indent=2) if self.json else format_description(description))

    def _describe(self) -> dict[str, Any]:
        if (self.file is not None) + (self.preset is not None) + (self.model is not None) > 1:
            raise ConfigError("info describes one thing: a preset, a model or a file")
        if self.file is None and self.model is None:
            from specjax.config import get_preset
            from specjax.report.counts import count_parameters

            return count_parameters(get_preset(self.preset or "paper"))
        from specjax.report import describe

        if self.file is not None:
            return describe.describe_file(
                self.file,
                self.survey,
                wavelength_medium=self.wavelength_medium,
                wavelength_unit=self.wavelength_unit,
            )
        from specjax.foundation import load

        return describe.describe_model(load(str(self.model)))
