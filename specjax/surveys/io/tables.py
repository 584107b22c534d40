"""Reading and writing tables of any format that astropy supports."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from astropy.table import QTable, Table

from specjax._version import __version__
from specjax.atomic import atomic_file, scratch_folder
from specjax.errors import DataError
from specjax.flags import FLAG_DTYPE, Flag
from specjax.overwrite import MARK
from specjax.surveys.io.fits import add_checksums, open_fits
from specjax.surveys.io.sniff import is_fits
from specjax.typing import FloatArray, StrArray
from specjax.units import NOT_STANDARD, column_description, column_ucd, column_unit

_WRITTEN = {
    ".ecsv": "ascii.ecsv",
    ".csv": "ascii.csv",
    ".fits": "fits",
    ".parquet": "parquet",
    ".vot": "votable",
}
SUFFIXES = tuple(_WRITTEN)
"""Suffixes of the tables that `write_table` writes."""

_ROWS_AT_ONCE = 20_000  # of a text table, whose rows take a kilobyte each while they are formatted
_NO_FLAG = ("", "N/A", "None", "nan")  # an empty flag as the readers of tables pass it on
_UNKNOWN = -999.0  # catalogues write -999, -9999 and the like for unknown values
_LONGEST = 30  # characters of a value in a message
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
    """Write columns with units and descriptions as .ecsv, .fits, .vot, .parquet or .csv, atomically.

    Descriptions are TCOMMn in FITS, and UCDs are TUCDn. CSV has names only. The metadata of
    the others name the version of specjax, by which `overwrite` recognises the file.

    Args:
        path: the suffix selects the format.
        columns: {name: (n,)}; units, descriptions and UCDs follow from the names, see `specjax.units`.
        meta: metadata of the table, kept if the format supports them.

    Raises:
        DataError: the suffix is unknown, columns differ in length, or pyarrow is missing for .parquet.
    """
    path = Path(path)
    form = written_format(path)
    lengths = {name: np.shape(values)[:1] for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of {path.name} differ in length: {lengths}")
    table = _described(columns, _marked(meta or {}), form)
    with atomic_file(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)  # keywords of more than eight characters
        if write := _WRITERS.get(form):
            write(table, temporary)
        else:
            table.write(temporary, format=form, overwrite=True)


def _marked(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata with the version of specjax, of which FITS makes capitals."""
    return {MARK: __version__, **{name: value for name, value in meta.items() if name.lower() != MARK}}


def qtable(columns: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> QTable:
    """Return columns as a table of quantities: with units, descriptions, and UCDs in their metadata.

    Args:
        columns: {name: (n,)} with names as specjax writes them, such as the predictions of
            `Foundation.predict`, `adapt.predict.predict` or `pipeline.predict_survey`.
        meta: metadata of the table.

    >>> table = qtable({"id": ["a", "b"], "teff": [5777.0, 4500.0]})
    >>> table["teff"].to_value("kK"), table["teff"].info.description
    (array([5.777, 4.5  ]), 'effective temperature')
    """
    return QTable(_described(columns, meta or {}))


def id_texts(column: Any) -> StrArray:
    """Return ids as stripped strings; masked ids are empty."""
    masked = np.broadcast_to(np.asarray(getattr(column, "mask", False)), (len(column),))
    text = [
        item.decode() if isinstance(item, bytes) else str(item) for item in np.ma.getdata(column).tolist()
    ]
    return np.where(masked, "", np.char.strip(np.array(text, dtype=np.str_)))


def flag_texts(column: Any) -> StrArray:
    """Return a column of flags as this version writes them, `FLAG_DTYPE`.

    Files of earlier versions have an empty text for a good spectrum, which readers of tables take for a
    missing value.
    """
    text = id_texts(column)
    return np.where(np.isin(text, _NO_FLAG), Flag.GOOD, text).astype(FLAG_DTYPE)


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
        raise DataError(f"{what} does not contain numbers{_first_text(column)}") from None
    if values.ndim != 1:
        raise DataError(f"{what} contains arrays of shape {values.shape[1:]}, not numbers")
    return np.where(masked | (values <= _UNKNOWN) | ~np.isfinite(values), np.nan, values)


def _first_text(column: Any) -> str:
    """Return the first value of a column that is no number, and its row, for a message."""
    for row, value in enumerate(np.ma.getdata(column).tolist(), start=1):
        try:
            float(value)
        except (TypeError, ValueError):
            return f": row {row} holds {str(value)[:_LONGEST]!r}"
    return ""


def _write_ecsv(table: Table, path: Path) -> None:
    _write_text(table, path, format="ascii.ecsv")


def _write_csv(table: Table, path: Path) -> None:
    """Write CSV with NaN spelt so that pandas, polars and astropy all take it for a number."""
    numbers = [column.name for column in table.itercols() if column.dtype.kind == "f"]
    nan = {"fill_values": [("nan", "NaN")], "fill_include_names": numbers} if numbers else {}
    _write_text(table, path, format="ascii.csv", fast_writer=False, **nan)


def _write_text(table: Table, path: Path, **options: Any) -> None:
    """Write a table as text, of a long one few rows at a time."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for start in range(0, max(len(table), 1), _ROWS_AT_ONCE):
            text = io.StringIO(newline="")
            table[start : start + _ROWS_AT_ONCE].write(text, **options)
            lines = text.getvalue().splitlines(keepends=True)
            names = next(k for k, line in enumerate(lines) if not line.startswith("#"))
            file.writelines(lines[names + 1 :] if start else lines)


def _write_fits(table: Table, path: Path) -> None:
    """Write FITS with descriptions and UCDs beside the names of the columns in the header.

    astropy puts both into comments that only astropy understands; they are kept for it. It writes a file
    whose header grows anew, under a name of its own beside it, which a killed process would leave: hence the
    folder.
    """
    with scratch_folder(path.parent) as folder:
        written = folder / path.name
        table.write(written, format="fits")
        with fits.open(written, mode="update") as file:
            for number, column in enumerate(table.itercols(), start=1):
                for key, value in (("TUCD", column.meta.get("ucd")), ("TCOMM", column.description)):
                    if value:
                        file[1].header.set(f"{key}{number}", value, after=f"TFORM{number}")
        add_checksums(written)
        written.replace(path)


def _write_votable(table: Table, path: Path) -> None:
    """Write a VOTable, with the metadata of the table as INFO elements."""
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info

    meta, table.meta = table.meta, {}
    votable = from_table(table)
    infos = votable.resources[0].infos
    for name, value in meta.items():
        infos.append(Info(name=name, ID=re.sub(r"\W", "_", f"about_{name}"), value=str(value)))
    votable.to_xml(str(path))


_WRITERS: dict[str, Callable[[Table, Path], None]] = {
    "ascii.csv": _write_csv,
    "ascii.ecsv": _write_ecsv,
    "fits": _write_fits,
    "votable": _write_votable,
}


def _described(columns: Mapping[str, Any], meta: Mapping[str, Any], form: str = "") -> Table:
    """Build the table to be written in a format, with the units and metadata that the format allows."""
    if form == "ascii.csv":
        meta = {}
    elif form == "fits":  # keywords of FITS are words
        meta = {re.sub(r"\W+", "_", key).strip("_"): value for key, value in meta.items()}
    table = Table(dict(columns), meta=dict(meta))
    for name in table.colnames:
        column = table[name]
        unit = column_unit(name) if column.dtype.kind == "f" else None
        if str(column.unit) in NOT_STANDARD:
            unit, column.unit = str(column.unit), None  # set again below where the format knows it
        column.description = column_description(name)
        if unit in NOT_STANDARD and form in ("fits", "votable"):
            column.description, unit = f"{column.description or name} ({unit})", None
        if unit:
            column.unit = unit
        if ucd := column_ucd(name):
            column.meta["ucd"] = ucd
    return table
