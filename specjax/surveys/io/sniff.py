"""Recognise FITS files: names of files, and the contents of headers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from specjax.errors import DataError
from specjax.surveys.io.fits import open_fits

SUFFIXES = (".fits", ".fits.gz", ".fit", ".fit.gz", ".fits.fz")

OTHER_SUFFIXES = (".npz", ".h5", ".hdf5", ".hdf", ".json", ".json.gz", ".csv", ".ecsv", ".parquet")

_MAX_FILES = 3  # per folder: a folder whose first three files are damaged is not recognised


@dataclass(frozen=True, kw_only=True)
class FitsContents:
    """The parts of a FITS file by which a survey is recognised.

    Attributes:
        header: values of the primary header by keyword.
        names: upper-case names of the HDUs after the primary one, as far as the file can be read.
        columns: column names of the first HDU after the primary one; empty if it is not a table.
    """

    header: Mapping[str, Any]
    names: tuple[str, ...]
    columns: tuple[str, ...]


def is_fits(path: Path) -> bool:
    """Whether `path` has the name of a FITS file."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The file's name without .fits, .fits.gz and the like."""
    name = path.name
    ending = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), path.suffix)
    return name[: len(name) - len(ending)]


def fits_files(path: Path) -> list[Path]:
    """`path` itself if it is a file, else the FITS files below the folder to any depth, sorted."""
    return [file for file in files_below(path) if is_fits(file)] if path.is_dir() else [path]


def files_below(folder: Path) -> list[Path]:
    """The files below a folder to any depth, sorted, but for hidden ones and those in hidden folders."""
    found = folder.rglob("*")
    shown = (path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
    return sorted(path for path in shown if path.is_file())


def files_by_kind(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files below a folder that may be spectra, by their names: FITS files, and others."""
    files = files_below(folder)
    fits = [file for file in files if is_fits(file)]
    return fits, [file for file in files if file.name.lower().endswith(OTHER_SUFFIXES)]


def look(path: Path) -> Iterator[FitsContents]:
    """Yield the contents of a FITS file, or of the first few of a folder, skipping unreadable files."""
    if path.is_file() and not is_fits(path):
        return
    for file in fits_files(path)[:_MAX_FILES]:
        try:
            yield contents_of(file)
        except DataError:
            continue


def contents_of(path: Path) -> FitsContents:
    """Return the contents of a FITS file.

    Raises:
        DataError: not even the primary header can be read.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return _contents(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)  # every reader asks about the same files
def _contents(path: Path, _changed: int, _size: int) -> FitsContents:
    with open_fits(path, "a FITS file", odd_cards=True, check=False) as hdus:
        header = {card.keyword: card.value for card in hdus[0].header.cards if card.keyword}
        names, columns = [], ()
        try:
            for hdu in hdus[1:]:
                names.append(hdu.name.upper())
            columns = tuple(hdus[1].columns.names) if len(hdus) > 1 and hasattr(hdus[1], "columns") else ()
        except Exception:  # a truncated file: the reader of its data raises a clear error
            pass
    return FitsContents(header=header, names=tuple(names), columns=columns)
