"""Reader of Gaia XP spectra: sampled from 336 to 1020 nm, or continuous coefficients through GaiaXPy.

Files are tables as written by the Gaia archive, DataLink and GaiaXPy (csv, ECSV, FITS or VOTable), with one
row per source (structure RAW) or per sample (INDIVIDUAL, COMBINED), or an .npz with source_id, flux,
flux_error and optionally wavelength_nm.
"""

import importlib
import operator
import sys
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.pixels import inverse_variance
from specjax.spectra import Spectra
from specjax.surveys.io import xp_tables
from specjax.surveys.io.many import log, read_folder
from specjax.surveys.io.xp_tables import KIND, Columns
from specjax.typing import FloatArray, StrArray
from specjax.wavelength import GAIA_XP_WAVELENGTH

_SAMPLED = ("source_id", "flux", "flux_error")
_CONTINUOUS = ("coefficients", "coefficient_errors", "coefficient_correlations", "n_parameters")
_BANDS = ("bp", "rp")
_PREFIXES = (xp_tables.PREFIX, "XP_CONTINUOUS")  # of DataLink's files
_MAX_FILES = 3  # of a folder, to recognise it


def recognise(path: Path) -> bool:
    """Whether `path` is a file of Gaia XP spectra, sampled or continuous, or a folder of such files."""
    return any(_is_xp(file) for file in (_files(path)[:_MAX_FILES] if path.is_dir() else [path]))


def read(path: Path) -> Spectra:
    """Read the sources of a file, or of all files of a folder; for unreadable files see `io.many.read_each`.

    In a folder, only the files with DataLink's names, XP_SAMPLED* and XP_CONTINUOUS*, are read if there are
    any.

    Returns:
        Spectra in vacuum with the flux in the file's unit (W m-2 nm-1) and ivar = 1 / flux_error**2;
        neighbouring samples are correlated. ids are source_ids; meta: ra, dec (degrees, NaN if the file has
        none), file.

    Raises:
        DataError: the file has another layout, arrays differ in length, a source occurs twice, or GaiaXPy is
            needed for coefficients and not installed (`pip install 'specjax[gaia]'`).
    """
    path = Path(path)
    return read_folder(path, _files(path) if path.is_dir() else [path], read_file, KIND)


def read_file(path: Path) -> Spectra:
    """Read the sources of one file, see `read`."""
    columns = xp_tables.read_columns(path)
    if "bp_coefficients" in columns:
        columns = _calibrated(path, columns)
    missing = [name for name in _SAMPLED if name not in columns]
    if missing:
        raise DataError(f"{path} is not {KIND}: it has no column {', '.join(missing)}")
    ids = _ids(path, columns)
    flux, flux_error = (_stack(path, name, columns[name]) for name in ("flux", "flux_error"))
    wavelength = _wavelength(path, columns, flux.shape[1])
    unknown = np.full(len(ids), np.nan)
    position = {key: np.array(columns.get(key, unknown), dtype=np.float64) for key in ("ra", "dec")}
    try:
        return Spectra.build(
            wavelength,
            flux,
            inverse_variance(flux_error),
            id=ids,
            meta={**position, "file": np.full(len(ids), path.name)},
            survey="gaia_xp",
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _is_xp(path: Path) -> bool:
    try:
        names = xp_tables.column_names(path) if path.is_file() else set()
    except (OSError, EOFError, DataError, UnicodeDecodeError, zipfile.BadZipFile):
        return False
    return (
        names.issuperset(_SAMPLED)
        or names >= {"source_id", "bp_coefficients"}
        or xp_tables.is_sample_per_row(path, names)
    )


def _files(folder: Path) -> list[Path]:
    """Return the tables of a folder, sorted; only those with DataLink's names if there are any."""
    tables = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.name.lower().endswith(xp_tables.TABLE_SUFFIXES)
    )
    return [file for file in tables if file.name.startswith(_PREFIXES)] or tables


def _ids(path: Path, columns: Columns) -> StrArray:
    """Return the unique ids of the sources as text."""
    ids = np.array([str(source) for source in _source_ids(path, columns)], dtype=np.str_)
    if not len(ids):
        raise DataError(f"{path} contains no sources")
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{path}: a source_id occurs more than once among {len(ids)} rows")
    return ids


def _source_ids(path: Path, columns: Columns) -> list[int]:
    """Return the ids as integers; a float does not represent them exactly."""
    try:
        ids = [
            source if isinstance(source, str) else operator.index(source) for source in columns["source_id"]
        ]
        return [int(source) for source in ids]
    except (TypeError, ValueError):
        raise DataError(f"{path}: not all values of source_id are integers") from None


def _stack(path: Path, name: str, rows: Sequence[Any]) -> FloatArray:
    """Stack n arrays to (n, p), with NaN for masked values."""
    arrays = [np.ma.filled(np.ma.asarray(row, dtype=np.float64), np.nan).ravel() for row in rows]
    lengths = {array.size for array in arrays}
    if len(lengths) != 1 or lengths == {1}:
        raise DataError(
            f"{path}: {name} should be an array of 343 samples per source, not of {sorted(lengths)}"
        )
    return np.stack(arrays)


def _wavelength(path: Path, columns: Columns, samples: int) -> FloatArray:
    if "wavelength_nm" in columns:
        return np.asarray(columns["wavelength_nm"], dtype=np.float64) * 10.0
    if samples != GAIA_XP_WAVELENGTH.size:
        raise DataError(
            f"{path} has {samples} samples per source and no wavelengths: only the archive's grid of 343 "
            "samples from 336 to 1020 nm can be assumed"
        )
    return GAIA_XP_WAVELENGTH


def _calibrated(path: Path, columns: Columns) -> Columns:
    """Convert coefficients to absolute flux on the 343 samples; GaiaXPy's rows are matched on source_id."""
    missing = [f"{band}_{part}" for band in _BANDS for part in _CONTINUOUS if f"{band}_{part}" not in columns]
    if missing:
        raise DataError(f"{path} is not a table of XP coefficients: it has no column {', '.join(missing)}")
    try:
        # An extra that few users need; it installs pandas.
        gaiaxpy, pandas = (importlib.import_module(name) for name in ("gaiaxpy", "pandas"))
    except ImportError:
        raise DataError(
            f"{path} contains continuous XP coefficients: reading them needs pip install 'specjax[gaia]'"
        ) from None
    table = _coefficients(path, columns)
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of GaiaXPy about its own dependencies
        result, _ = gaiaxpy.calibrate(
            pandas.DataFrame(table), sampling=np.arange(336, 1021, 2), save_file=False
        )
    ids = table["source_id"].tolist()
    row_of = {int(source): row for row, source in enumerate(result["source_id"])}
    absent = [source for source in ids if source not in row_of]
    if absent:
        raise DataError(
            f"{path}: GaiaXPy returned no spectrum of {len(absent)} sources, the first {absent[0]}"
        )
    rows = [row_of[source] for source in ids]
    sampled = {name: [result[name].iloc[row] for row in rows] for name in ("flux", "flux_error")}
    return {**{key: columns[key] for key in ("source_id", "ra", "dec") if key in columns}, **sampled}


def _coefficients(path: Path, columns: Columns) -> dict[str, Any]:
    """Return the columns that GaiaXPy calibrates."""
    table: dict[str, Any] = {"source_id": np.array(_source_ids(path, columns), dtype=np.int64)}
    for band in _BANDS:
        table |= {f"{band}_{part}": list(columns[f"{band}_{part}"]) for part in _CONTINUOUS[:3]}
        table[f"{band}_n_parameters"] = np.array(columns[f"{band}_n_parameters"], dtype=np.int64)
        name = f"{band}_standard_deviation"
        if name not in columns:
            log.warning("%s has no %s: flux errors are computed as if it were 1", path, name)
        table[name] = np.array(columns.get(name, [1.0] * len(table["source_id"])), dtype=np.float64)
    return table
