"""The command `specjax`: parses, calls, prints. A subcommand imports what it calls when it runs.

Results go to stdout and progress to stderr. An error that a user can cause is one line on stderr and exit
status 1; `--debug` anywhere on the line shows where it came from.
"""

import json as json_module
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from specjax._version import __version__
from specjax.errors import ConfigError, SpecjaxError


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what a preset, a model folder or a file of spectra is."""

    file: Annotated[Positional[Path | None], arg(metavar="SPECTRA")] = None
    """a survey's files, to see what `specjax adapt` would read"""
    preset: str | None = None
    """parameter counts of a preset: paper or mini"""
    model: str | None = None
    """what a model folder holds; mini is the model that ships"""
    json: bool = False
    """print JSON"""

    def run(self) -> None:
        """Print the description."""
        from specjax.describe import format_description

        description = self._describe()
        print(json_module.dumps(description, indent=2) if self.json else format_description(description))

    def _describe(self) -> dict[str, Any]:
        if (self.file is not None) + (self.preset is not None) + (self.model is not None) > 1:
            raise ConfigError("info describes one thing: a preset, a model or a file")
        from specjax import describe

        if self.file is not None:
            from specjax.surveys import read

            return describe.describe_spectra(read(self.file))
        if self.model is not None:
            from specjax.foundation import load

            return describe.describe_model(load(self.model))
        from specjax.config import get_preset

        return describe.count_parameters(get_preset(self.preset or "paper"))


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download data into the cache ($SPECJAX_CACHE, or the user's cache folder) and print where it is."""

    what: Positional[Literal["stellar-libraries"]]
    """stellar-libraries: the observed stars of MILES and STELIB, and mean MaStar spectra (121 MB)"""

    def run(self) -> None:
        """Fetch and print the folder."""
        from specjax.surveys.libraries import fetch_stellar_libraries

        print(fetch_stellar_libraries())


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train a foundation model from nothing, on the stellar libraries (fetched if they are not there)."""

    out: Path
    """the model folder to write"""
    preset: str = "mini"
    """sizes and schedule"""
    seed: int = 0
    """random seed"""
    resume: bool = False
    """go on where an interrupted run with this folder stopped"""

    def run(self) -> None:
        """Train and print the folder."""
        from specjax._startup import use_compilation_cache

        use_compilation_cache()
        from specjax.pretraining import pretrain

        pretrain(preset=self.preset, out=self.out, seed=self.seed, resume=self.resume, say=say)
        print(self.out)


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
        from specjax._startup import use_compilation_cache

        use_compilation_cache()
        from specjax.results import print_table
        from specjax.runs import adapt_survey
        from specjax.train.adapt import AdaptConfig

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
        from specjax._startup import use_compilation_cache

        use_compilation_cache()
        from specjax.runs import predict_survey

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


Command = Info | Fetch | Pretrain | Adapt | Predict


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; usage errors leave through SystemExit(2)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(__version__)
        return 0
    description = "Adapt a stellar foundation model to a new survey. --debug shows where an error came from."
    command: Command = tyro.cli(
        Command,
        prog="specjax",
        description=description,
        args=words or ["--help"],
        config=(FlagCreatePairsOff,),
    )
    return _status(command.run, debug)


def run(program: Callable[[], object]) -> NoReturn:
    """Run a study's main function as a program: exit with 0, or with 1 and one line where a user erred."""
    sys.exit(_status(program, debug=False))


def _status(program: Callable[[], object], debug: bool) -> int:
    """Run, and turn what a user can cause into one line on stderr and an exit status."""
    try:
        program()
    except (SpecjaxError, OSError) as error:
        if debug:
            raise
        print(f"specjax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("specjax: interrupted", file=sys.stderr)
        return 130
    return 0


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
