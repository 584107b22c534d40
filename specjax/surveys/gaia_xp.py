"""Gaia XP spectra: sampled on 343 points from 336 to 1020 nm, or as continuous coefficients through GaiaXPy.

Tables as the archive, DataLink and GaiaXPy write them, csv, ECSV, FITS or VOTable: a row for each source
(structure RAW) or for each sample (INDIVIDUAL, COMBINED); or an .npz with source_id, flux, flux_error and
optionally wavelength_nm.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import operator
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from astropy.io.votable.exceptions import VOWarning
from astropy.table import Table

from specjax.errors import DataError
from specjax.spectra import GAIA_XP_WAVELENGTH, Spectra
from specjax.surveys.io import xp_tables
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.many import log, read_folder
from specjax.surveys.io.sniff import SUFFIXES, is_fits, summary
from specjax.typing import FloatArray

_WHAT = "a table of Gaia XP spectra"
_TEXT, _VOTABLE = (".csv", ".csv.gz", ".ecsv", ".ecsv.gz"), (".vot", ".vot.gz", ".xml", ".votable")
_SAMPLED = ("source_id", "flux", "flux_error")
_CONTINUOUS = ("coefficients", "coefficient_errors", "coefficient_correlations", "n_parameters")
_PREFIXES = (xp_tables.PREFIX, "XP_CONTINUOUS")  # of DataLink's files
_LOOKED_AT = 3  # files of a folder
_HEAD = 1 << 16  # bytes of a VOTable that surely hold its first fields

Columns = Mapping[str, Sequence[Any]]


def recognise(path: Path) -> bool:
    """Whether `path` is a file of Gaia XP spectra, sampled or continuous, or a folder of them."""
    return any(_is_xp(file) for file in (_files(path)[:_LOOKED_AT] if path.is_dir() else [path]))


def read(path: Path) -> Spectra:
    """The sources of one file, or of all of a folder; files that cannot be used are reported by `read_each`.

    Of a folder, the files named as DataLink names them, XP_SAMPLED* and XP_CONTINUOUS*; without such, all.

    Returns:
      Spectra in vacuum, flux in the file's unit (W m-2 nm-1), ivar 1/flux_error**2, neighbouring samples
      correlated; ids are source_ids; meta ra, dec (degrees; NaN where the file has none), file.

    Raises:
      DataError: not such a file, arrays of other lengths, a source that occurs twice, or coefficients without
        GaiaXPy (`pip install 'specjax[gaia]'`).
    """
    path = Path(path)
    return read_folder(path, _files(path) if path.is_dir() else [path], read_file, _WHAT)


def read_file(path: Path) -> Spectra:
    """The sources of one file, as `read`."""
    columns = _read(path)
    by_sample = xp_tables.is_one_sample_a_row(path, set(columns)) and len(columns["flux"]) > 0
    if by_sample and np.ndim(columns["flux"][0]) == 0:
        columns = xp_tables.gather(path, columns)
    elif "bp_coefficients" in columns:
        columns = _calibrated(path, columns)
    missing = [name for name in _SAMPLED if name not in columns]
    if missing:
        raise DataError(f"{path} is not {_WHAT}: it has no column {', '.join(missing)}")
    ids = np.array([str(source) for source in _source_ids(path, columns)], dtype=np.str_)
    if not len(ids):
        raise DataError(f"{path} holds no sources")
    if len(set(ids.tolist())) < len(ids):
        raise DataError(f"{path}: a source_id occurs more than once among {len(ids)} rows")
    flux, error = (_stack(path, name, columns[name]) for name in ("flux", "flux_error"))
    wavelength = _wavelength(path, columns, flux.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ivar = np.where(error > 0, 1.0 / error**2, 0.0)
    nothing = np.full(len(ids), np.nan)
    position = {key: np.array(columns.get(key, nothing), dtype=np.float64) for key in ("ra", "dec")}
    try:
        return Spectra.build(
            wavelength,
            flux,
            ivar,
            id=ids,
            meta={**position, "file": np.full(len(ids), path.name)},
            survey="gaia_xp",
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _is_xp(path: Path) -> bool:
    try:
        names = _names(path) if path.is_file() else set()
    except (OSError, EOFError, DataError, UnicodeDecodeError, zipfile.BadZipFile):
        return False
    return (
        names.issuperset(_SAMPLED)
        or {"source_id", "bp_coefficients"} <= names
        or xp_tables.is_one_sample_a_row(path, names)
    )


def _files(folder: Path) -> list[Path]:
    """The folder's files of XP spectra by name."""
    kinds = (*SUFFIXES, *_TEXT, *_VOTABLE)
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.lower().endswith(kinds))
    named = [file for file in files if file.name.startswith(_PREFIXES)]
    return named or files


def _source_ids(path: Path, columns: Columns) -> list[int]:
    """The ids as integers; a float cannot hold one."""
    try:
        ids = [
            source if isinstance(source, str) else operator.index(source) for source in columns["source_id"]
        ]
        return [int(source) for source in ids]
    except (TypeError, ValueError):
        raise DataError(f"{path}: its source_id are not all integers") from None


def _names(path: Path) -> set[str]:
    """The columns of a file, from its beginning alone."""
    name = path.name.lower()
    if is_fits(path):
        return set(summary(path).columns)
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
        fields = (*_SAMPLED, "wavelength", "bp_coefficients") if "<votable" in head else ()
        return {field for field in fields if f'name="{field}"' in head}
    return set()


def _read(path: Path) -> Columns:
    name = path.name.lower()
    if is_fits(path):
        with open_fits(path, _WHAT, odd_cards=True) as hdus:
            data = hdus[1].data
            return {column.lower(): list(data[column]) for column in data.names}
    if name.endswith(_TEXT):
        return _read_text(path)
    if name.endswith(".npz"):
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a readable .npz file: {error}") from None
    if name.endswith(_VOTABLE):
        return _read_votable(path)
    raise DataError(f"{path} is not {_WHAT}: it is not a csv, ecsv, fits, votable or npz file")


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as stream:
        yield stream


def _read_text(path: Path) -> Columns:
    """Columns of a csv or ECSV table; a field such as "(1.0, 2.0)" or "[1.0, null]" becomes an array."""
    try:
        with _open_text(path) as stream:
            lines = [line for line in stream if not line.startswith("#")]
        rows = list(csv.DictReader(lines, delimiter=_delimiter(lines[0] if lines else "")))
        names = list(rows[0]) if rows else []
        return {name: [_field(row[name]) for row in rows] for name in names}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, csv.Error) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not {_WHAT}: {line[0]}") from None


def _delimiter(names: str) -> str:
    """The archive's tables have commas; ECSV by astropy has spaces unless told otherwise."""
    return "," if "," in names else " "


def _field(text: str) -> Any:
    if text[:1] in ("(", "["):
        return np.array(text.strip("()[] ").replace("null", "nan").split(","), dtype=np.float64)
    return text if text.strip() not in ("", "null") else "nan"


def _read_votable(path: Path) -> Columns:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VOWarning)  # the archive's files break the standard in small ways
        try:
            table = Table.read(path, format="votable")
        except Exception as error:  # astropy's parser raises whatever it meets
            line = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{path} is not a readable VOTable: {line[0]}") from None
    return {name.lower(): list(table[name]) for name in table.colnames}


def _stack(path: Path, name: str, rows: Sequence[Any]) -> FloatArray:
    """(n, p) from n arrays; masked values as NaN."""
    arrays = [np.ma.filled(np.ma.asarray(row, dtype=np.float64), np.nan).ravel() for row in rows]
    lengths = {array.size for array in arrays}
    if len(lengths) != 1 or lengths == {1}:
        raise DataError(
            f"{path}: {name} should be an array of 343 samples a source, not of {sorted(lengths)}"
        )
    return np.stack(arrays)


def _wavelength(path: Path, columns: Columns, samples: int) -> FloatArray:
    if "wavelength_nm" in columns:
        return np.asarray(columns["wavelength_nm"], dtype=np.float64) * 10.0
    if samples != GAIA_XP_WAVELENGTH.size:
        raise DataError(
            f"{path} has {samples} samples a source: without wavelengths specjax knows only the archive's "
            "343 from 336 to 1020 nm"
        )
    return GAIA_XP_WAVELENGTH


def _calibrated(path: Path, columns: Columns) -> Columns:
    """Coefficients as absolute flux on the 343 samples; GaiaXPy's rows are matched on source_id."""
    missing = [f"{b}_{part}" for b in ("bp", "rp") for part in _CONTINUOUS if f"{b}_{part}" not in columns]
    if missing:
        raise DataError(f"{path} is not a table of XP coefficients: it has no column {', '.join(missing)}")
    try:
        # An extra that few need; pandas comes with it.
        gaiaxpy, pandas = (importlib.import_module(name) for name in ("gaiaxpy", "pandas"))
    except ImportError:
        raise DataError(
            f"{path} holds continuous XP coefficients: reading them needs pip install 'specjax[gaia]'"
        ) from None
    ids = _source_ids(path, columns)
    table: dict[str, Any] = {"source_id": np.array(ids, dtype=np.int64)}
    for band in ("bp", "rp"):
        table |= {f"{band}_{part}": list(columns[f"{band}_{part}"]) for part in _CONTINUOUS[:3]}
        table[f"{band}_n_parameters"] = np.array(columns[f"{band}_n_parameters"], dtype=np.int64)
        spread = columns.get(f"{band}_standard_deviation")
        if spread is None:
            log.warning("%s has no %s_standard_deviation: flux errors are as if it were 1", path, band)
        table[f"{band}_standard_deviation"] = np.array(spread or [1.0] * len(ids), dtype=np.float64)
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of GaiaXPy about its own dependencies
        result, _ = gaiaxpy.calibrate(
            pandas.DataFrame(table), sampling=np.arange(336, 1021, 2), save_file=False
        )
    row_of = {int(source): row for row, source in enumerate(result["source_id"])}
    absent = [source for source in ids if source not in row_of]
    if absent:
        raise DataError(f"{path}: GaiaXPy gave no spectrum of {len(absent)} sources, the first {absent[0]}")
    rows = [row_of[source] for source in ids]
    sampled = {name: [result[name].iloc[row] for row in rows] for name in ("flux", "flux_error")}
    return {**{key: columns[key] for key in ("source_id", "ra", "dec") if key in columns}, **sampled}
