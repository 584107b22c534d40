"""A user's own spectra in a .csv, .ecsv or .parquet table: one spectrum in columns, or one in each row."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.many import assume_vacuum

_TEXT = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}
_PARQUET = ".parquet"
_WAVELENGTH = re.compile(r"(?:flux_)?(\d+(?:\.\d*)?)$")
_UNITS = {"Angstrom": "angstrom", "nm": "nm", "um": "um"}
_MIN_PIXELS = 10  # columns named as wavelengths, that a table of labels doesn't have by chance


def recognise(path: Path) -> bool:
    """Whether `path` is a table of spectra by the names of its columns; for .parquet by its own name."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (*_TEXT, _PARQUET):
        return False
    if suffix == _PARQUET:
        return True
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            names = next(csv.reader(line for line in stream if not line.startswith("#")), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    # ECSV is delimited by spaces unless it says otherwise.
    names = names[0].split() if len(names) == 1 else names
    return {"wavelength", "flux"} <= set(names) or len(_pixels(names)) >= _MIN_PIXELS


def read(path: Path, wavelength_medium: str | None = None, wavelength_unit: str | None = None) -> Spectra:
    """Spectra of one table.

    Either columns wavelength and flux, optionally ivar or flux_error, and mask: one spectrum, whose id is the
    file's name; or a row for each spectrum with columns named by wavelength ("4000.5" or "flux_4000.5"),
    optionally id, and further columns, which become meta. A unit of the column wavelength is honoured.

    Args:
      path: .csv, .ecsv or .parquet.
      wavelength_medium: "vacuum" or "air"; vacuum where None.
      wavelength_unit: "angstrom", "nm", "um" or "log10"; the table's own, else Angstrom, where None.

    Raises:
      DataError: not such a table, or spectra that cannot be used.
    """
    path = Path(path)
    table = _table(path)
    medium = wavelength_medium or assume_vacuum(path)
    try:
        if {"wavelength", "flux"} <= set(table.colnames):
            return _one(path, table, medium, wavelength_unit)
        pixels = _pixels(table.colnames)
        if len(pixels) < 2:
            raise DataError("no columns wavelength and flux, nor columns named by wavelength")
        return _rows(path, table, pixels, medium, wavelength_unit)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _table(path: Path) -> Table:
    form = _TEXT.get(path.suffix.lower(), "parquet")
    options: dict[str, Any] = {"converters": {"id": str}} if form == "ascii.csv" else {}
    try:
        return Table.read(path, format=form, **options)
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow: pip install 'specjax[parquet]'") from None
    except Exception as error:  # astropy's readers raise whatever their parser does
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not a table that astropy reads: {line[0]}") from None


def _one(path: Path, table: Table, medium: str, unit: str | None) -> Spectra:
    said = _UNITS.get(str(table["wavelength"].unit))
    if unit is not None and said not in (None, unit):
        raise DataError(f"its wavelength unit is {said}, not {unit}")
    ivar = _filled(table["ivar"]) if "ivar" in table.colnames else None
    if ivar is None and "flux_error" in table.colnames:
        error = _filled(table["flux_error"])
        ivar = np.divide(1.0, error**2, out=np.zeros_like(error), where=error > 0)
    mask = np.asarray(table["mask"]) if "mask" in table.colnames else None
    wavelength, flux = _filled(table["wavelength"]), _filled(table["flux"])
    return Spectra.build(
        wavelength, flux, ivar, mask, [path.stem], medium=medium, survey=path.stem, unit=unit or said
    )


def _rows(
    path: Path, table: Table, pixels: list[tuple[str, float]], medium: str, unit: str | None
) -> Spectra:
    flux = np.stack([_filled(table[name]) for name, _ in pixels], axis=1)
    used = {"id", *(name for name, _ in pixels)}
    return Spectra.build(
        np.array([wavelength for _, wavelength in pixels]),
        flux,
        id=np.char.strip(np.asarray(table["id"]).astype(np.str_)) if "id" in table.colnames else None,
        meta={name: np.ma.getdata(table[name]) for name in table.colnames if name not in used},
        medium=medium,
        survey=path.stem,
        unit=unit,
    )


def _pixels(names: list[str]) -> list[tuple[str, float]]:
    """Columns that are named by a wavelength, with it."""
    return [(name, float(found[1])) for name in names if (found := _WAVELENGTH.match(name))]


def _filled(column: Any) -> np.ndarray:
    try:
        return np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
    except (TypeError, ValueError):
        raise DataError(f"column {column.name} does not hold numbers") from None
