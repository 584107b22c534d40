"""The plan of a run: files, options and chunks, and a record of them to detect changes."""

import glob
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from specjax.errors import ConfigError, DataError
from specjax.flags import MAX_MASKED
from specjax.progress import Say
from specjax.surveys import SURVEYS, arrays, prepared, redrock, specclip
from specjax.surveys.io.many import assume_medium
from specjax.surveys.registry import UNDECLARED, is_undeclared, places_of, spectra_below

LIBRARIES = ("miles", "stelib", "mastar")
"""Stellar libraries, whose folders are read as a whole."""

_FILES_AT_ONCE = 256
_BYTES_AT_ONCE = 32 << 20  # of files; preparing them takes about ten times that
_FILES_ASKED = 20  # for the medium of their wavelengths
_ROWS_AT_ONCE = 2048  # of an array file
_PIXELS_AT_ONCE = 1 << 23  # of these rows: 64 MB per array, as new memory costs more time for larger ones


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `surveys.read` and `preprocess.to_lamost`.

    Attributes:
        survey: the survey, if it cannot be recognised from the files.
        wavelength_medium: "vacuum" or "air", if the files do not declare it.
        wavelength_unit: the unit of wavelength, if the files do not declare it.
        assumed_medium: the medium to take for files that declare none, where none is given; None is vacuum,
            with a warning.
        assumed_unit: the unit, likewise.
        method: "rebin" or "interpolate"; None is "rebin" for raw spectra and accepts prepared ones of either.
        fwhm_from: resolution of the spectra, Angstrom. Spectra covering 336-1020 nm then get a Gaia XP side.
        fwhm_to: resolution in Angstrom to which the spectra are smoothed.
        velocity_column: radial velocities to remove: "redshift" (v/c) or a column in km/s.
        max_masked: fraction of masked pixels above which a spectrum is flagged.
        tower: the model grid that `put_on_grid` puts spectra on, "lamost" or "gaia_xp".
    """

    survey: str | None = None
    wavelength_medium: str | None = None
    wavelength_unit: str | None = None
    assumed_medium: str | None = None
    assumed_unit: str | None = None
    method: Literal["rebin", "interpolate"] | None = "rebin"
    fwhm_from: float | None = None
    fwhm_to: float | None = None
    velocity_column: str | None = None
    max_masked: float = MAX_MASKED
    tower: Literal["lamost", "gaia_xp"] = "lamost"

    def __post_init__(self) -> None:
        if self.survey is not None and self.survey not in SURVEYS:
            raise ConfigError(f"unknown survey {self.survey!r}: specjax reads {', '.join(SURVEYS)}")
        if self.fwhm_to is not None and (self.fwhm_from is None or self.fwhm_to < self.fwhm_from):
            raise ConfigError("lowering the resolution requires fwhm_from and a larger fwhm_to")
        if not 0 <= self.max_masked <= 1:
            raise ConfigError(f"max_masked is a fraction from 0 to 1, not {self.max_masked:g}")


def report_medium(sources: Iterable["Source"], options: Options, say: Say) -> None:
    """Say, once for a run, which medium is taken for files that do not declare it, if there are any."""
    if options.wavelength_medium is not None or options.survey not in (None, *UNDECLARED):
        return
    paths = dict.fromkeys(source.path for source in sources if not source.prepared)
    first = next(filter(is_undeclared, itertools.islice(paths, _FILES_ASKED)), None)
    if first is None:
        return
    if options.assumed_medium is None:
        assume_medium(first)
    else:
        say(
            f"{first} does not declare whether its wavelengths are in vacuum or air: {options.assumed_medium}"
            " is taken, as in the spectra of the adapter"
        )


@dataclass(frozen=True)
class Source:
    """A file, the folder of a stellar library, or a range of rows of an array file or a prepared file.

    Attributes:
        path: of the file.
        size: in bytes.
        rows: first row and the one after the last; all if None.
        prepared: whether `specjax prepare` has written it.
        place: see `registry.read_in_place`.
    """

    path: Path
    size: int
    rows: tuple[int, int] | None = None
    prepared: bool = False
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chunks of sources, and everything on which the result depends.

    Attributes:
        options: options of the preprocessing.
        chunks: sources that are prepared together.
        stamps: {path: [size in bytes, modification time in ns]} of the files.
        xp_stamps: the same for the Gaia XP files, on which no chunk depends.
    """

    options: Options
    chunks: list[list[Source]]
    stamps: dict[str, list[int]]
    xp_stamps: dict[str, list[int]]

    @property
    def file_count(self) -> int:
        """The number of files."""
        return len({source.path for chunk in self.chunks for source in chunk})

    @cached_property
    def record(self) -> dict[str, Any]:
        """Everything on which the chunks depend, for JSON: version, options and stamps."""
        return {"version": prepared.VERSION, "options": asdict(self.options), "stamps": self.stamps}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything on which the result depends."""
        whole = {**self.record, "xp_stamps": self.xp_stamps}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def make_plan(
    sources: Sequence[Path],
    options: Options,
    *,
    xp: Sequence[Path] = (),
    out: Path,
    split_prepared: bool = False,
) -> Plan:
    """Find the files and group them into chunks.

    Folders are searched to any depth, except those of stellar libraries. From a folder with FITS files only
    these are used; redrock's files are skipped, because they are read together with their coadds. `out`, the
    files in it if it is a folder, and its report are skipped, too.

    Args:
        sources: files, folders, patterns and lists of files, see `given_paths`.
        options: options of the preprocessing.
        xp: files of Gaia XP spectra.
        out: the file or folder to write.
        split_prepared: a chunk is also a range of rows of a prepared file, alone. Otherwise a prepared file
            is a source like any other, for the reader to refuse.

    Raises:
        DataError: if a source does not exist, a folder has no files of spectra, or there is no source.
    """
    found: dict[Path, Source] = {}
    stamps: dict[str, list[int]] = {}
    own = {path.absolute() for path in (out, report_path(out))}
    for given in given_paths(sources):
        path = given.absolute()
        for file in _expand(path, options.survey):
            if file in own or out.absolute() in file.parents:
                continue
            stamps[str(file)] = _stamp(file)
            if file not in found and not _is_companion(file, path):
                found[file] = Source(path=file, size=stamps[str(file)][0])
    if not found:
        raise DataError("there are no files of spectra")
    xp_stamps = {str(path.absolute()): _stamp(path) for path in (given.expanduser() for given in xp)}
    places = places_of(list(found))
    placed = [replace(source, place=places.get(file, "")) for file, source in found.items()]
    pieces = [piece for source in placed for piece in _pieces(source, split_prepared)]
    return Plan(options=options, chunks=list(_chunks(pieces)), stamps=stamps, xp_stamps=xp_stamps)


def given_paths(sources: Sequence[str | Path]) -> Iterator[Path]:
    """Yield what a user names: files and folders as they are, and what patterns and lists of them stand for.

    A pattern such as night-*/spec-*.fits is expanded if there is no file of this name; ** stands for folders
    of any depth. @list.txt is a text file with one of all these per line; empty lines and those that begin
    with # are skipped.

    Raises:
        DataError: nothing matches a pattern, or a list cannot be read.
    """
    for given in sources:
        path = Path(given).expanduser()
        if path.exists():
            yield path
        elif str(given).startswith("@"):
            lines = _read_lines(Path(str(given)[1:]).expanduser())
            yield from given_paths([line for line in lines if line and not line.startswith("#")])
        elif glob.has_magic(str(path)):
            found = sorted(glob.glob(str(path), recursive=True))
            if not found:
                raise DataError(f"nothing matches {path}")
            yield from map(Path, found)
        else:
            yield path


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable list of files: {error}") from None


def report_path(out: Path) -> Path:
    """Return the path of the report on the prepared file `out`."""
    return out.with_suffix(".report.ecsv")


def _expand(path: Path, survey: str | None) -> list[Path]:
    """Return the file, the folder of a library, or the files below a folder."""
    if not path.exists():
        raise DataError(f"there is nothing at {path}")
    if path.is_file() or survey in LIBRARIES or any(SURVEYS[name].recognise(path) for name in LIBRARIES):
        return [path]
    known = spectra_below(path, survey)
    if not known:
        raise DataError(f"{path} holds no files of spectra")
    return known


def _is_companion(file: Path, given: Path) -> bool:
    """Return whether a file found in a folder is redrock's, which is read together with its coadd."""
    return file != given and file.name.startswith(redrock.PREFIXES)


def _stamp(path: Path) -> list[int]:
    """Return size and modification time; for a folder, the sum and the maximum over its files."""
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    if not files:
        raise DataError(f"there is nothing at {path}")
    states = [file.stat() for file in files]
    return [sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def _pieces(source: Source, split_prepared: bool) -> Iterator[Source]:
    """Split a large array file into ranges of rows, so that it is never in memory as a whole."""
    path = source.path
    if split_prepared and prepared.recognise(path):
        yield from _row_ranges(replace(source, prepared=True))
        return
    large = source.size > _BYTES_AT_ONCE and path.suffix.lower() in arrays.HDF5
    if not large or prepared.recognise(path) or specclip.recognise(path):
        yield source
        return
    yield from _row_ranges(source)


def _row_ranges(source: Source) -> Iterator[Source]:
    try:
        count, pixels = arrays.flux_shape(source.path)
    except DataError:
        count, pixels = 0, 1
    if not count:  # damaged or empty, for the reader to refuse
        yield replace(source, prepared=False)
    most = min(_ROWS_AT_ONCE, max(_PIXELS_AT_ONCE // max(pixels, 1), 1))
    at_once = 1 << (most.bit_length() - 1)  # batches of the networks are powers of two
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        yield replace(source, size=source.size * (stop - start) // count, rows=(start, stop))


def _chunks(sources: Sequence[Source]) -> Iterator[list[Source]]:
    chunk: list[Source] = []
    size = 0
    for source in sources:
        full = len(chunk) == _FILES_AT_ONCE or size + source.size > _BYTES_AT_ONCE
        if chunk and (full or source.prepared or chunk[-1].prepared):
            yield chunk
            chunk, size = [], 0
        chunk.append(source)
        size += source.size
    yield chunk
