"""Run Turbospectrum: write its inputs, start its two programs and read the spectrum."""

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.synthesis.atmospheres import Atmospheres, model_metallicity
from experiments.synthesis.packages import Sources
from specjax.errors import DataError
from specjax.typing import FloatArray

CARBON, NITROGEN = 8.39, 7.78
"""Solar abundances in the programs (log10 of the number per 10^12 hydrogen atoms)."""

ISOTOPES = {"22.047": 0.522, "22.049": 0.478}
"""Shares of the isotopes of titanium: the line list lacks 48TiO, for which 47TiO and 49TiO stand in."""

TIMEOUT = 600.0  # seconds for one program, tenfold of what the slowest spectrum takes

MODEL, OPACITY, SPECTRUM = "model", "opacity", "spectrum"
"""Files of a synthesis."""

_CONTINUUM_STEP = 10.0  # Angstrom between wavelengths of the continuous opacity
_SOLAR_RADIUS = 7e10  # cm


@dataclass(frozen=True, kw_only=True)
class Star:
    """What a synthesis needs to know about a star: K, dex, dex, dex, km/s, dex, dex."""

    teff: float
    logg: float
    fe_h: float
    alpha_fe: float
    vmicro: float
    c_fe: float = 0.0
    n_fe: float = 0.0


@dataclass(frozen=True)
class Window:
    """Wavelengths of a synthesis in air, Angstrom."""

    low: float
    high: float
    step: float

    @property
    def wavelength(self) -> FloatArray:
        """The wavelengths (n,)."""
        count = int((self.high - self.low) / self.step + 1e-6) + 1
        return np.asarray(self.low + self.step * np.arange(count), np.float64)


def synthesise(
    star: Star,
    window: Window,
    line_lists: Sequence[Path],
    atmospheres: Atmospheres,
    sources: Sources,
) -> tuple[FloatArray, FloatArray]:
    """Return flux over the continuum and flux in erg/s/cm2/A at the surface, both (n,).

    LTE in one dimension, plane-parallel.

    Raises:
        DataError: no model atmosphere, or a program fails, takes too long or returns an invalid spectrum.
    """
    model = atmospheres.at(star.teff, star.logg, model_metallicity(star.fe_h, star.alpha_fe))
    if model is None:
        raise DataError("no model atmosphere")
    with tempfile.TemporaryDirectory(prefix="specjax-synthesis-") as name:
        folder = Path(name)
        (folder / "DATA").symlink_to(sources.data.resolve())
        (folder / MODEL).write_text(model_text(model, star))
        _run(sources.programs / "babsma_lu", opacity_input(star, window), folder / OPACITY)
        lists = [sources.data / "Hlinedata", *line_lists]
        for number, path in enumerate(lists):  # the programs cut paths after 256 characters
            (folder / f"lines{number}").symlink_to(path.resolve())
        names = [f"lines{number}" for number in range(len(lists))]
        _run(sources.programs / "bsyn_lu", spectrum_input(star, window, names), folder / SPECTRUM)
        return read_spectrum(folder / SPECTRUM, window)


def model_text(model: FloatArray, star: Star) -> str:
    """Return a model (56, 5) in a format of Turbospectrum."""
    radius = _SOLAR_RADIUS * 10 ** (0.5 * (4.44 - star.logg))  # of one solar mass; unused if plane-parallel
    lines = [f"'sphINTERPOL' {len(model)} 5000. {star.logg:.2f} 0 0."]
    lines += [
        f"{tau:9.4f} {temperature:9.2f} {electron:9.4f} {gas:9.4f} {star.vmicro:6.3f} {radius - depth:15.8e}"
        for tau, temperature, electron, gas, depth in model
    ]
    return "\n".join(lines) + "\n"


def opacity_input(star: Star, window: Window) -> str:
    """Return the input of babsma, which computes continuous opacities a little beyond the window."""
    wide = Window(window.low - _CONTINUUM_STEP, window.high + _CONTINUUM_STEP, _CONTINUUM_STEP)
    options = {"MODELINPUT": MODEL, "MARCS-FILE": ".false.", "MODELOPAC": OPACITY}
    text = _wavelengths(wide) + _options(options) + _abundances(star)
    return text + _options({"XIFIX": "T"}) + f"{star.vmicro:.3f}\n"


def spectrum_input(star: Star, window: Window, line_lists: Sequence[str]) -> str:
    """Return the input of bsyn, which computes the spectrum."""
    options = {
        "INTENSITY/FLUX": "Flux",
        "ABFIND": ".false.",
        "MODELOPAC": OPACITY,
        "RESULTFILE": SPECTRUM,
    }
    text = _wavelengths(window) + _options(options) + _abundances(star)
    text += _options({"NFILES": str(len(line_lists))}) + "".join(f"{name}\n" for name in line_lists)
    # The four numbers concern spherical models but are always read.
    return text + _options({"SPHERICAL": "F"}) + "30\n300.00\n15\n1.30\n"


def read_spectrum(path: Path, window: Window) -> tuple[FloatArray, FloatArray]:
    """Return flux over the continuum and flux of a file of bsyn.

    Raises:
        DataError: another number of wavelengths, or flux outside of what is possible.
    """
    try:
        table = np.array(path.read_text().split(), np.float64).reshape(-1, 3)
    except ValueError:
        raise DataError("a spectrum that is no table of three numbers per wavelength") from None
    expected = len(window.wavelength)
    # The last wavelength may be lost to rounding.
    if len(table) not in (expected - 1, expected):
        raise DataError(f"{len(table)} wavelengths in place of {expected}")
    table = np.concatenate([table, table[-1:]])[:expected]
    relative = table[:, 1]
    if not (np.isfinite(table).all() and relative.min() > -1e-3 and relative.max() < 1.02):
        raise DataError(f"flux from {relative.min():g} to {relative.max():g} of the continuum")
    return relative, table[:, 2]


def _options(values: dict[str, str]) -> str:
    return "".join(f"'{key}:' '{value}'\n" for key, value in values.items())


def _wavelengths(window: Window) -> str:
    values = {"MIN": f"{window.low:.3f}", "MAX": f"{window.high:.3f}", "STEP": f"{window.step:.4f}"}
    return _options({f"LAMBDA_{key}": value for key, value in values.items()})


def _abundances(star: Star) -> str:
    options = {
        "METALLICITY": f"{star.fe_h:.4f}",
        "ALPHA/Fe": f"{star.alpha_fe:.4f}",
        "HELIUM": "0.00",
        "R-PROCESS": "0.00",
        "S-PROCESS": "0.00",
    }
    changed = {6: CARBON + star.fe_h + star.c_fe, 7: NITROGEN + star.fe_h + star.n_fe}
    text = _options(options) + _options({"INDIVIDUAL ABUNDANCES": str(len(changed))})
    text += "".join(f"{number} {abundance:.4f}\n" for number, abundance in changed.items())
    text += _options({"ISOTOPES": str(len(ISOTOPES))})
    return text + "".join(f"{isotope} {share:.3f}\n" for isotope, share in ISOTOPES.items())


def _run(program: Path, text: str, result: Path) -> None:
    """Run one of the programs, which writes the file `result`; its messages go to a file beside it."""
    log = result.with_suffix(".log")
    try:
        with log.open("w") as output:
            status = subprocess.run(
                [program.resolve()],
                input=text,
                text=True,
                cwd=result.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        raise DataError(f"{program.name} took more than {TIMEOUT:.0f} s") from None
    # On some errors the programs print a message and end with status 0.
    if status or not result.is_file():
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise DataError(f"{program.name} ended with status {status}: {last.strip()}")
