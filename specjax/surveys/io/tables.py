"""Reading and writing tables of any format that astropy supports."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.fits.verify import VerifyWarning
from astropy.table import Table

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.surveys.io.fits import add_checksums, open_fits
from specjax.surveys.io.sniff import is_fits
from specjax.typing import FloatArray, StrArray
from specjax.units import COLUMNS, column_description, label_unit

_WRITTEN = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".parquet": "parquet"}
SUFFIXES = tuple(_WRITTEN)
"""Suffixes of the tables that `write_table` writes."""

_ROWS_AT_ONCE = 20_000  # of a text table, whose rows take a kilobyte each while they are formatted
_UNKNOWN = -999.0  # catalogues write -999, -9999 and the like for unknown values
_TEXT = {".csv": "ascii.csv", ".txt": "ascii", ".dat": "ascii", ".tsv": "ascii.tab"}


def read_table(path: str | Path, *, texts: Sequence[str] = ("id",)) -> Table:
    """Read a table with its columns unchanged.

    Args:
        path: .csv, .ecsv, .fits, .vot, .parquet or any other format that astropy reads.
        texts: columns to read as text: an id such as 00123 is not a number.

    Raises:
        DataError: the file does not exist, is damaged or no table, or a package for its format is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no table at {path}")
    if is_fits(path):
        with open_fits(path, "a table", odd_cards=True) as hdus:
            list(hdus)  # which compares their checksums
    options: dict[str, Any] = {}
    if form := _TEXT.get(path.suffix.lower()):
        options = {"format": form, "converters": {name: str for name in texts}}
    try:
        return Table.read(path, **options)
    except ImportError as error:
        raise DataError(f"reading {path} needs a further package: {error}") from None
    except Exception as error:  # astropy's readers pass on any exception of their parsers
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not a table that astropy reads: {line[0]}") from None


def written_format(path: Path) -> str:
    """Return astropy's name of the format that the suffix selects; call it before a long computation.

    Raises:
        DataError: the suffix is unknown, or pyarrow is missing for .parquet.
    """
    form = _WRITTEN.get(path.suffix.lower())
    if form is None:
        raise DataError(f"cannot write {path.name}: the suffix must be one of {', '.join(_WRITTEN)}")
    if form == "parquet":
        require_pyarrow()
    return form


def require_pyarrow(what: str = "writing") -> None:
    """Raise a DataError if Parquet files cannot be read or written; `what` is the word for that."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DataError(f"{what} .parquet needs pyarrow: pip install 'specjax[parquet]'") from None


def write_table(path: str | Path, columns: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
    """Write columns with their units as .ecsv, .fits, .parquet or .csv, atomically.

    Args:
        path: the suffix selects the format.
        columns: {name: (n,)}; units follow from the names, see `units.label_unit`.
        meta: metadata of the table, kept if the format supports them.

    Raises:
        DataError: the suffix is unknown, columns differ in length, or pyarrow is missing for .parquet.
    """
    path = Path(path)
    form = written_format(path)
    lengths = {name: np.shape(values)[:1] for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of {path.name} differ in length: {lengths}")
    table = _with_units(columns, meta or {}, form)
    with atomic_file(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)  # keywords of more than eight characters
        if form == "ascii.ecsv" and len(table) > _ROWS_AT_ONCE:
            _write_in_parts(table, temporary)
        else:
            table.write(temporary, format=form, overwrite=True)
            if form == "fits":
                add_checksums(temporary)


def id_texts(column: Any) -> StrArray:
    """Return ids as stripped strings; masked ids are empty."""
    masked = np.broadcast_to(np.asarray(getattr(column, "mask", False)), (len(column),))
    text = [
        item.decode() if isinstance(item, bytes) else str(item) for item in np.ma.getdata(column).tolist()
    ]
    return np.where(masked, "", np.char.strip(np.array(text, dtype=np.str_)))


def floats(column: Any, what: str) -> FloatArray:
    """Return a column as float64, with NaN for masked values and for values <= -999, which mean "unknown".

    Args:
        column: (n,) numbers.
        what: the subject of the error message: "t.csv: column fe_h".

    Raises:
        DataError: the column does not contain one number per row.
    """
    masked = np.broadcast_to(np.asarray(getattr(column, "mask", False)), np.shape(column))
    try:
        values = np.ma.getdata(column).astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} does not contain numbers") from None
    if values.ndim != 1:
        raise DataError(f"{what} contains arrays of shape {values.shape[1:]}, not numbers")
    return np.where(masked | (values <= _UNKNOWN) | ~np.isfinite(values), np.nan, values)


def _write_in_parts(table: Table, path: Path) -> None:
    """Write a long table as ECSV with few rows as text in memory at a time."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for start in range(0, len(table), _ROWS_AT_ONCE):
            text = io.StringIO(newline="")
            table[start : start + _ROWS_AT_ONCE].write(text, format="ascii.ecsv")
            lines = text.getvalue().splitlines(keepends=True)
            names = next(k for k, line in enumerate(lines) if not line.startswith("#"))
            file.writelines(lines[names + 1 :] if start else lines)


def _with_units(columns: Mapping[str, Any], meta: Mapping[str, Any], form: str) -> Table:
    """Build the table to be written in a format, with the units and metadata that the format allows."""
    if form == "ascii.csv":
        meta = {}
    elif form == "fits":  # keywords of FITS are words
        meta = {re.sub(r"\W+", "_", key).strip("_"): value for key, value in meta.items()}
    table = Table(dict(columns), meta=dict(meta))
    for name in table.colnames:
        table[name].description = column_description(name)
        unit = label_unit(name) or COLUMNS.get(name)
        if unit and table[name].dtype.kind == "f":
            table[name].unit = unit
        if form == "fits" and str(table[name].unit) == "dex":
            table[name].unit = None  # the FITS standard has no dex
    return table
