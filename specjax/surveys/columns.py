"""Reader of .csv, .ecsv and .parquet tables: one spectrum in columns, or one spectrum per row."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table
from astropy.units import Quantity

from specjax.errors import DataError
from specjax.pixels import inverse_variance
from specjax.spectra import Spectra
from specjax.surveys.io.column_names import LOG, by_role, medium_of
from specjax.surveys.io.column_units import known_unit
from specjax.surveys.io.many import assume_medium, assumed_unit
from specjax.typing import FloatArray

_TEXT = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}
_PARQUET = ".parquet"
SUFFIXES = (*_TEXT, _PARQUET)
_WAVELENGTH = re.compile(r"(?:flux_)?(\d+(?:\.\d*)?)$")
_UNITS = {"Angstrom": "angstrom", "nm": "nm", "um": "um"}
_MIN_PIXELS = 10  # columns named by wavelength; a table of labels has fewer


def recognise(path: Path) -> bool:
    """Whether `path` is a table of spectra, by its column names; a .parquet file by its own name."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in SUFFIXES:
        return False
    if suffix == _PARQUET:
        return True
    names = _names(path)
    return {"wavelength", "flux"} <= by_role(names).keys() or len(_pixels(names)) >= _MIN_PIXELS


def read(path: Path, wavelength_medium: str | None = None, wavelength_unit: str | None = None) -> Spectra:
    """Read the spectra of one table.

    The table has either columns wavelength and flux, optionally ivar or flux_error, and mask, also under the
    other names of `column_names.COLUMNS`: one spectrum, whose id is the file's name; or one row per spectrum
    with columns named by wavelength ("4000.5" or "flux_4000.5"), optionally id, and further columns, which
    become meta. The unit of the column wavelength is honoured.

    Args:
        path: .csv, .ecsv or .parquet.
        wavelength_medium: "vacuum" or "air"; default vacuum.
        wavelength_unit: "angstrom", "nm", "um" or "log10"; default the table's own, else Angstrom.

    Raises:
        DataError: the table has another layout, or its spectra cannot be used.
    """
    path = Path(path)
    table = _table(path)
    roles = by_role(table.colnames)
    declared = medium_of(roles.get("wavelength", ""))
    if wavelength_medium is not None and declared not in (None, wavelength_medium):
        raise DataError(f"{path}: {roles['wavelength']} is in {declared}, not in {wavelength_medium}")
    medium = declared or wavelength_medium or assume_medium(path)
    try:
        if {"wavelength", "flux"} <= roles.keys():
            return _one(path, table, roles, medium, wavelength_unit)
        pixels = _pixels(table.colnames)
        if len(pixels) < 2:
            raise DataError("no columns wavelength and flux, nor columns named by wavelength")
        return _rows(path, table, pixels, medium, wavelength_unit)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def declares_medium(path: Path) -> bool:
    """Return whether the name of a column says what its wavelengths are in; False if it cannot be read."""
    return medium_of(by_role(_names(path)).get("wavelength", "")) is not None


def _names(path: Path) -> list[str]:
    """Return the names of the columns of a table without its rows; none if they cannot be read."""
    try:
        if path.suffix.lower() == _PARQUET:
            from pyarrow import parquet

            return list(parquet.read_schema(path).names)
        with path.open(encoding="utf-8", newline="") as stream:
            names = next(csv.reader(line for line in stream if not line.startswith("#")), [])
    except (OSError, ValueError, ImportError, csv.Error):  # ArrowInvalid is a ValueError
        return []
    # ECSV is delimited by spaces unless it declares another delimiter.
    return names[0].split() if len(names) == 1 else names


def _table(path: Path) -> Table:
    form = _TEXT.get(path.suffix.lower(), "parquet")
    options: dict[str, Any] = {"converters": {"id": str}} if form == "ascii.csv" else {}
    try:
        return Table.read(path, format=form, **options)
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow: pip install 'specjax[parquet]'") from None
    except Exception as error:  # astropy's readers pass on any exception of their parsers
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not a table that astropy reads: {line[0]}") from None


def _one(path: Path, table: Table, roles: Mapping[str, str], medium: str, unit: str | None) -> Spectra:
    found = {role: table[name] for role, name in roles.items()}
    declared = _UNITS.get(str(found["wavelength"].unit))
    if roles["wavelength"].lower() in LOG:
        declared = "log10"
    if unit is not None and declared not in (None, unit):
        raise DataError(f"its wavelength unit is {declared}, not {unit}")
    ivar = _filled(found["ivar"]) if "ivar" in found else None
    if ivar is None and "error" in found:
        ivar = inverse_variance(_filled(found["error"]))
    mask = np.asarray(found["mask"]) if "mask" in found else None
    wavelength, flux = _filled(found["wavelength"]), _filled(found["flux"])
    if (density := known_unit(path, found["flux"].unit)) is not None:
        flux = Quantity(flux, density)  # per frequency, it is converted
    return Spectra.build(
        wavelength,
        flux,
        ivar,
        mask,
        [path.stem],
        medium=medium,
        survey=path.stem,
        unit=unit or declared or assumed_unit(),
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
        unit=unit or assumed_unit(),
    )


def _pixels(names: list[str]) -> list[tuple[str, float]]:
    """Return (name, wavelength) of the columns named by a wavelength."""
    return [(name, float(found[1])) for name in names if (found := _WAVELENGTH.match(name))]


def _filled(column: Column) -> FloatArray:
    """Return a column of numbers, with NaN for masked values."""
    try:
        return np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
    except (TypeError, ValueError):
        raise DataError(f"column {column.name} does not contain numbers") from None
