"""Columns of Gaia XP files: csv, ECSV, FITS, VOTable and npz, with one row per source or per sample."""

import csv
import gzip
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from astropy.io.votable.exceptions import VOWarning
from astropy.table import Table

from specjax.errors import DataError
from specjax.npz import NpzError, read_npz
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.sniff import SUFFIXES, contents_of, is_fits
from specjax.typing import FloatArray

KIND = "a table of Gaia XP spectra"

PREFIX = "XP_SAMPLED"
"""Prefix of DataLink's files of sampled spectra: "XP_SAMPLED-Gaia DR3 4042548725000000000.csv"."""

_TEXT, _VOTABLE = (".csv", ".csv.gz", ".ecsv", ".ecsv.gz"), (".vot", ".vot.gz", ".xml", ".votable")
TABLE_SUFFIXES = (*SUFFIXES, *_TEXT, *_VOTABLE)

_SAMPLES = {"wavelength", "flux", "flux_error"}
_FIELDS = ("source_id", *sorted(_SAMPLES), "bp_coefficients")
_SOURCE = re.compile(r"Gaia[ _]DR\d[ _](\d+)")
_HEAD = 1 << 16  # bytes of a VOTable, enough for the declarations of its fields

Columns = Mapping[str, Sequence[Any]]


def column_names(path: Path) -> set[str]:
    """Return the names of a file's columns from its beginning; empty if it is not a table.

    Of a VOTable, only the names by which XP spectra are recognised are returned.

    Raises:
        OSError, EOFError, DataError, UnicodeDecodeError, zipfile.BadZipFile: the file is damaged.
    """
    name = path.name.lower()
    if is_fits(path):
        return set(contents_of(path).columns)
    if name.endswith(_TEXT):
        with _open_text(path) as stream:
            line = next((line for line in stream if not line.startswith("#")), "")
        return set(next(csv.reader([line], delimiter=_delimiter(line)), []))
    if name.endswith(".npz"):
        with zipfile.ZipFile(path) as file:
            return {entry.removesuffix(".npy") for entry in file.namelist()}
    if name.endswith(_VOTABLE):
        with _open_text(path) as stream:
            head = stream.read(_HEAD).lower()
        return {field for field in _FIELDS if "<votable" in head and f'name="{field}"' in head}
    return set()


def read_columns(path: Path) -> Columns:
    """Read the columns of a file, one row per source; tables with one row per sample are gathered.

    Raises:
        DataError: the file is damaged or not a table, or see `gather`.
    """
    columns = _read(path)
    if is_sample_per_row(path, set(columns)) and len(columns["flux"]) and np.ndim(columns["flux"][0]) == 0:
        return gather(path, columns)
    return columns


def is_sample_per_row(path: Path, names: set[str]) -> bool:
    """Whether a file of this name and with these columns may have one row per sample.

    DataLink's structures INDIVIDUAL (one source per file) and COMBINED (several) have.
    """
    return names >= _SAMPLES and ("source_id" in names or path.name.startswith(PREFIX))


def gather(path: Path, columns: Columns) -> Columns:
    """Convert the columns of a table with one row per sample to one row per source.

    The source is given by the column source_id, or, for a file of one source, by the file's name.

    Returns:
        {"source_id", "flux", "flux_error": one row per source, "wavelength_nm": (samples,)}.

    Raises:
        DataError: the source is unknown, sources are sampled at different wavelengths, or values are not
            numbers.
    """
    sources = [str(value) for value in columns.get("source_id", ())]
    if not sources:
        found = _SOURCE.search(path.name)
        if found is None:
            raise DataError(f"{path} names the source neither in a column source_id nor in its file name")
        sources = [found[1]] * len(columns["flux"])
    names, source_of = np.unique(sources, return_inverse=True)
    order = np.argsort(source_of, kind="stable")  # samples of one source together, in the file's order
    ends = np.cumsum(np.bincount(source_of))[:-1]
    split = {name: np.split(_numbers(path, name, columns[name])[order], ends) for name in sorted(_SAMPLES)}
    grids = split["wavelength"]
    if not all(np.array_equal(grid, grids[0]) for grid in grids):
        raise DataError(f"{path}: its {len(names)} sources are not sampled at the same wavelengths")
    return {
        "source_id": names.tolist(),
        "wavelength_nm": grids[0],
        **{key: split[key] for key in ("flux", "flux_error")},
    }


def _read(path: Path) -> Columns:
    name = path.name.lower()
    if is_fits(path):
        with open_fits(path, KIND, odd_cards=True) as hdus:
            data = hdus[1].data
            return {column.lower(): list(data[column]) for column in data.names}
    if name.endswith(_TEXT):
        return _read_text(path)
    if name.endswith(".npz"):
        try:
            return {name: list(array) for name, array in read_npz(path).items()}
        except (OSError, NpzError) as error:
            raise DataError(f"{path} is not a readable .npz file: {error}") from None
    if name.endswith(_VOTABLE):
        return _read_votable(path)
    raise DataError(f"{path} is not {KIND}: it is not a csv, ecsv, fits, votable or npz file")


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as stream:
        yield stream


def _read_text(path: Path) -> Columns:
    """Read a csv or ECSV table; fields such as "(1.0, 2.0)" or "[1.0, null]" become arrays."""
    try:
        with _open_text(path) as stream:
            lines = [line for line in stream if not line.startswith("#")]
        rows = list(csv.DictReader(lines, delimiter=_delimiter(lines[0] if lines else "")))
        names = list(rows[0]) if rows else []
        return {name: [_field(row[name]) for row in rows] for name in names}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, csv.Error) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not {KIND}: {line[0]}") from None


def _delimiter(names: str) -> str:
    """The archive separates columns by commas, ECSV written by astropy by default with spaces."""
    return "," if "," in names else " "


def _field(text: str) -> Any:
    if text[:1] in ("(", "["):
        return np.array(text.strip("()[] ").replace("null", "nan").split(","), dtype=np.float64)
    return text if text.strip() not in ("", "null") else "nan"


def _read_votable(path: Path) -> Columns:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VOWarning)  # the archive's files violate the standard in small ways
        try:
            table = Table.read(path, format="votable")
        except Exception as error:  # astropy's parser raises exceptions of any kind
            line = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{path} is not a readable VOTable: {line[0]}") from None
    return {name.lower(): list(table[name]) for name in table.colnames}


def _numbers(path: Path, name: str, values: Sequence[Any]) -> FloatArray:
    try:
        return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    except (TypeError, ValueError):
        raise DataError(f"{path}: column {name} does not contain numbers") from None
