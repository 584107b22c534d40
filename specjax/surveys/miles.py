"""MILES: 983 stars, 3540-7410 A in air, 0.9 A, FWHM 2.5 A, at rest.

Sanchez-Blazquez et al. (2006, MNRAS 371, 703); labels of Cenarro et al. (2007, MNRAS 374, 664).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import linear_axis, open_fits

FWHM = 2.5
"""Spectral resolution in Angstrom."""

LABEL_FILE = "paramsMILES_v9.1.txt"

# Fixed columns, because names and spectral types hold spaces and run into their neighbours.
_NAME, _NUMBER = slice(0, 22), slice(22, 28)
_LABELS = {"teff": slice(50, 56), "logg": slice(56, 63), "fe_h": slice(63, 72)}


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of MILES files."""
    return path.is_dir() and (path / LABEL_FILE).is_file()


def read(folder: Path) -> Spectra:
    """Every MILES spectrum that the parameter table lists by number.

    Returns:
      Spectra in air with ids "m0001V" and meta name, file, teff (K), logg (dex), fe_h (dex); NaN where a
      label is unknown. The files have no uncertainties.

    Raises:
      DataError: no table, no spectra, or a file that is not as MILES files are.
    """
    folder = Path(folder)
    labels = read_labels(folder / LABEL_FILE)
    files = [path for path in sorted(folder.glob("*_m????V.fits")) if _number(path) in labels]
    if not files:
        raise DataError(f"{folder} holds no MILES spectra (*_m????V.fits) that {LABEL_FILE} lists")
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


def read_labels(path: Path) -> dict[str, tuple[str, dict[str, float]]]:
    """{number: (name, {teff, logg, fe_h})} from the parameter table; '--' becomes NaN.

    One row (HD 044691A) has a misprinted number, "022.": nothing says which file it belongs to, so it is left
    out.
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
        raise DataError(f"the MILES parameter table holds {text!r} where a number or '--' belongs") from None


def _number(path: Path) -> str:
    return path.stem[-5:-1]


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Wavelength and flux of one file."""
    with open_fits(path, "a MILES spectrum") as hdus:
        flux = np.asarray(hdus[0].data, dtype=np.float64)
        return linear_axis(hdus[0].header, flux.size), flux
