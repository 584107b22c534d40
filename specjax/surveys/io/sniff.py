"""A quick look at a FITS file, or at the first ones of a folder, to recognise what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from specjax.errors import DataError
from specjax.surveys.io.fits import open_fits

SUFFIXES = (".fits", ".fits.gz", ".fit", ".fit.gz", ".fits.fz")

_LOOKED_AT = 3  # files of a folder: so many may be damaged or something else before it is not recognised


@dataclass(frozen=True, kw_only=True)
class FitsSummary:
    """What recognises a FITS file.

    Attributes:
      header: the primary header's values.
      names: of the HDUs after the primary one, upper case, as far as the file can be read.
      columns: of the first HDU after the primary one, as they are written; empty if it is not a table.
    """

    header: Mapping[str, Any]
    names: tuple[str, ...]
    columns: tuple[str, ...]


def is_fits(path: Path) -> bool:
    """Whether `path` is named as a FITS file."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The file's name without .fits, .fits.gz and the like."""
    name = path.name
    ending = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), path.suffix)
    return name[: len(name) - len(ending)]


def fits_files(path: Path) -> list[Path]:
    """`path` itself, or the FITS files of the folder `path` by name; subfolders are not entered."""
    if not path.is_dir():
        return [path]
    return sorted(entry for entry in path.iterdir() if is_fits(entry) and entry.is_file())


def look(path: Path) -> Iterator[FitsSummary]:
    """Summaries of a FITS file or of the first few of a folder; files that cannot be read are left out."""
    if path.is_file() and not is_fits(path):
        return
    for file in fits_files(path)[:_LOOKED_AT]:
        try:
            yield summary(file)
        except DataError:
            continue


def summary(path: Path) -> FitsSummary:
    """What the headers of a FITS file say.

    Raises:
      DataError: not even the primary header can be read.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return _summary(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)  # every reader asks about the same files
def _summary(path: Path, _changed: int, _size: int) -> FitsSummary:
    with open_fits(path, "a FITS file", odd_cards=True) as hdus:
        header = {card.keyword: card.value for card in hdus[0].header.cards if card.keyword}
        names, columns = [], ()
        try:
            for hdu in hdus[1:]:
                names.append(hdu.name.upper())
            columns = tuple(hdus[1].columns.names) if len(hdus) > 1 and hasattr(hdus[1], "columns") else ()
        except Exception:  # cut short: the reader that reads the data will say so
            pass
    return FitsSummary(header=header, names=tuple(names), columns=columns)
