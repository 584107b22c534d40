"""Tables of labels and predictions: any table that astropy reads, joined to spectra on `id`."""

from __future__ import annotations

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
from specjax.typing import FloatArray

UNITS = {"teff": "K", "logg": "dex", "fe_h": "dex", "radial_velocity": "km / s"}
"""Units written beside the columns of these names, and those that start with them and "_"."""

_WRITTEN = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".parquet": "parquet"}
_UNKNOWN = -999.0  # -999, -9999 and the like are how catalogues write a value that they do not have
_TEXT = {".csv": "ascii.csv", ".txt": "ascii", ".dat": "ascii", ".tsv": "ascii.tab"}


def read_labels(path: str | Path, columns: Sequence[str] | None = None, *, id_column: str = "id") -> Table:
    """A table with an `id` column of strings and label columns of floats.

    Args:
      path: .csv, .ecsv, .fits, .vot, .parquet and whatever else astropy reads.
      columns: the label columns that are wanted; all that hold numbers where None.
      id_column: the name of the column that holds the ids.

    Returns:
      Table with columns id and the labels, masked or missing values as NaN.

    Raises:
      DataError: not a table, no such columns, a label that is not a number, or ids that are empty or not
        unique.
    """
    table = read_table(path, texts=[id_column])
    wanted = [name for name in table.colnames if _numeric(table[name])] if columns is None else list(columns)
    missing = [name for name in (id_column, *wanted) if name not in table.colnames]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}: it has {', '.join(table.colnames)}")
    ids = id_texts(table[id_column])
    if (ids == "").any():
        raise DataError(f"{path}: {int((ids == '').sum())} rows have no {id_column}")
    names, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise DataError(
            f"{path}: {_some(names[count > 1])} {'occur' if (count > 1).sum() > 1 else 'occurs'} twice"
        )
    result = Table({"id": ids})
    for name in wanted:
        if name != id_column:
            result[name] = floats(table[name], f"{path}: column {name}")
            result[name].unit = table[name].unit
    return result


def join_labels(
    ids: Sequence[str] | np.ndarray, table: Table, columns: Sequence[str], *, partial: bool = True
) -> dict[str, FloatArray]:
    """The label columns in the order of the spectra's ids.

    Args:
      ids: (n,) ids of the spectra.
      table: as `read_labels` gives it.
      columns: names of label columns.
      partial: whether spectra without a row are allowed; their labels are NaN.

    Returns:
      {column: (n,) float64}.

    Raises:
      DataError: ids that are not unique, no id in common, or, unless `partial`, ids without a row.
    """
    names, count = np.unique(np.asarray(ids, dtype=np.str_), return_counts=True)
    if (count > 1).any():
        raise DataError(f"spectra cannot be joined on ids that are not unique: {_some(names[count > 1])}")
    row_of = {name: row for row, name in enumerate(table["id"].tolist())}
    rows = np.array([row_of.get(str(name), -1) for name in ids], dtype=int)
    if len(rows) and (rows < 0).all():
        raise DataError(
            f"no spectrum's id is in the label table: spectra have {_some(np.asarray(ids))}, "
            f"the table has {_some(np.asarray(table['id']))}"
        )
    absent = np.asarray(ids)[rows < 0]
    if absent.size and not partial:
        raise DataError(f"{absent.size} spectra have no row in the label table: {_some(absent)}")
    return {
        name: np.where(rows < 0, np.nan, np.asarray(table[name], dtype=np.float64)[rows]) for name in columns
    }


def write_table(path: str | Path, columns: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
    """Columns of one length as .ecsv, .fits, .parquet or .csv, with units, whole or not at all.

    Args:
      path: the suffix gives the format.
      columns: {name: (n,)}; `UNITS` gives units by name.
      meta: facts about the table, kept where the format can.

    Raises:
      DataError: an unknown suffix, columns of different lengths, or no pyarrow for .parquet.
    """
    path = Path(path)
    form = _WRITTEN.get(path.suffix.lower())
    if form is None:
        raise DataError(f"cannot write {path.name}: the suffix must be one of {', '.join(_WRITTEN)}")
    lengths = {name: np.shape(values)[:1] for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of {path.name} differ in length: {lengths}")
    about = dict(meta or {}) if form != "ascii.csv" else {}
    if form == "fits":  # whose keywords are words
        about = {re.sub(r"\W+", "_", key).strip("_"): value for key, value in about.items()}
    table = Table(dict(columns), meta=about)
    for name in table.colnames:
        unit = next((u for key, u in UNITS.items() if name == key or name.startswith(f"{key}_")), None)
        if unit and table[name].dtype.kind == "f":
            table[name].unit = unit
        if form == "fits" and str(table[name].unit) == "dex":
            table[name].unit = None  # the FITS standard has no dex
    try:
        with atomic_file(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", VerifyWarning)  # keywords of more than eight letters
            table.write(temporary, format=form, overwrite=True)
    except ImportError:
        raise DataError(f"writing {path.suffix} needs pyarrow: pip install 'specjax[parquet]'") from None


def read_table(path: str | Path, *, texts: Sequence[str] = ("id",)) -> Table:
    """Any table that astropy reads, its columns as they are.

    Args:
      path: as `read_labels`.
      texts: columns to be taken as text, for an id such as 00123 is not a number.

    Raises:
      DataError: no file, not a table, or a package that is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no label table at {path}")
    options: dict[str, Any] = {}
    if form := _TEXT.get(path.suffix.lower()):
        options = {"format": form, "converters": {name: str for name in texts}}
    try:
        return Table.read(path, **options)
    except ImportError as error:
        raise DataError(f"reading {path} needs a further package: {error}") from None
    except Exception as error:  # astropy's readers raise whatever their parser does
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not a table that astropy reads: {line[0]}") from None


def id_texts(column: Any) -> np.ndarray:
    """Ids as stripped strings; masked ones empty."""
    masked = np.broadcast_to(np.asarray(getattr(column, "mask", False)), (len(column),))
    text = [
        item.decode() if isinstance(item, bytes) else str(item) for item in np.ma.getdata(column).tolist()
    ]
    return np.where(masked, "", np.char.strip(np.array(text, dtype=np.str_)))


def floats(column: Any, what: str) -> FloatArray:
    """A column as float64; masked values as NaN, and those at or below -999, which mean "unknown" as well.

    Raises:
      DataError: it does not hold numbers, one a row; `what` it is, for the message.
    """
    masked = np.broadcast_to(np.asarray(getattr(column, "mask", False)), np.shape(column))
    try:
        values = np.ma.getdata(column).astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{what} does not hold numbers") from None
    if values.ndim != 1:
        raise DataError(f"{what} holds arrays of shape {values.shape[1:]}, not numbers")
    return np.where(masked | (values <= _UNKNOWN) | ~np.isfinite(values), np.nan, values)


def _numeric(column: Any) -> bool:
    return column.dtype.kind in "iuf" and column.ndim == 1


def _some(names: np.ndarray) -> str:
    """A few names for a message."""
    shown = ", ".join(str(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
