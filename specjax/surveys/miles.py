"""Reader of the MILES library: 983 stars, 3540-7410 A in air, 0.9 A pixels, FWHM 2.5 A, rest frame.

Sanchez-Blazquez et al. (2006, MNRAS 371, 703); labels of Cenarro et al. (2007, MNRAS 374, 664).
"""

import re
from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import linear_axis, open_fits
from specjax.typing import FloatArray

FWHM = 2.5
"""Spectral resolution in Angstrom."""

LABEL_FILE = "paramsMILES_v9.1.txt"

# Columns are fixed, because names and spectral types contain spaces and run into their neighbours.
_NAME, _NUMBER = slice(0, 22), slice(22, 28)
_LABELS = {"teff": slice(50, 56), "logg": slice(56, 63), "fe_h": slice(63, 72)}


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of MILES files."""
    return path.is_dir() and (path / LABEL_FILE).is_file()


def read(folder: Path) -> Spectra:
    """Read all MILES spectra whose number is in the parameter table.

    Returns:
        Spectra in air without uncertainties. ids have the form "m0001V"; meta: name, file, teff (K), logg
        (dex), fe_h (dex), NaN where unknown.

    Raises:
        DataError: there is no table or no spectrum, or a file is damaged.
    """
    folder = Path(folder)
    labels = _read_parameters(folder / LABEL_FILE)
    files = [path for path in sorted(folder.glob("*_m????V.fits")) if _number(path) in labels]
    if not files:
        raise DataError(f"{folder} contains no MILES spectra (*_m????V.fits) that are in {LABEL_FILE}")
    grids, flux = zip(*(_read_file(path) for path in files), strict=True)
    if any(not np.array_equal(grid, grids[0]) for grid in grids):
        raise DataError(f"{folder}: MILES spectra on different wavelength grids")
    rows = [labels[_number(path)] for path in files]
    return Spectra.build(
        grids[0],
        np.stack(flux),
        id=[f"m{_number(path)}V" for path in files],
        meta={
            "name": np.array([name for name, _ in rows]),
            "file": np.array([path.name for path in files]),
            **{key: np.array([values[key] for _, values in rows]) for key in _LABELS},
        },
        medium="air",
        survey="miles",
    )


def _read_parameters(path: Path) -> dict[str, tuple[str, dict[str, float]]]:
    """Read {number: (name, {teff, logg, fe_h})} from the parameter table; NaN for '--'.

    The row of HD 044691A is left out: its number is misprinted as "022.", so its file cannot be identified.
    """
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the MILES parameters: {error}") from None
    table = {}
    for line in lines:
        number = line[_NUMBER].strip()
        if re.fullmatch(r"\d{4}", number):
            table[number] = (line[_NAME].strip(), {key: _value(line[part]) for key, part in _LABELS.items()})
    if not table:
        raise DataError(
            f"{path} is not the MILES parameter table: no row has a four-digit number in columns 23-28"
        )
    return table


def _value(text: str) -> float:
    text = text.strip()
    try:
        return np.nan if text in ("", "--") else float(text)
    except ValueError:
        raise DataError(f"the MILES parameter table has {text!r} where a number or '--' belongs") from None


def _number(path: Path) -> str:
    return path.stem[-5:-1]


def _read_file(path: Path) -> tuple[FloatArray, FloatArray]:
    """Read the wavelengths and flux of one file."""
    with open_fits(path, "a MILES spectrum") as hdus:
        flux = np.asarray(hdus[0].data, dtype=np.float64)
        return linear_axis(hdus[0].header, flux.size), flux
