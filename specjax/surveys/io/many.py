"""Reading many files: skip and report the unreadable ones, and put the spectra on one grid."""

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.typing import FloatArray

log = logging.getLogger(__name__)

_MAX_OFFSET = 0.02  # pixels between equal grids; headers round their coefficients to 1e-3 of a pixel

T = TypeVar("T")

_assumed: set[Path] = set()  # folders of files for which it has been logged
_taken: ContextVar[tuple[str | None, str | None]] = ContextVar("taken", default=(None, None))
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)
_COST = (  # measured, see docs/inputs.md
    "vacuum is assumed. In air, that is wrong by 84 km/s at 5000 A, and [Fe/H] typically by 0.02 to 0.04 dex:"
    " declare it once, in the file (wavelength_medium) or with --wavelength-medium"
)
_left_out: ContextVar[list[str] | None] = ContextVar("left_out", default=None)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """Collect the reasons for everything that readers leave out inside the block; they are logged as well."""
    reasons: list[str] = []
    token = _left_out.set(reasons)
    try:
        yield reasons
    finally:
        _left_out.reset(token)


def report_left_out(reason: str) -> None:
    """Log a warning that something was left out, and hand the reason to `collecting`."""
    log.warning("left out: %s", reason)
    if (reasons := _left_out.get()) is not None:
        reasons.append(reason)


@contextmanager
def assuming(medium: str | None, unit: str | None) -> Iterator[None]:
    """Take this medium and unit inside the block for files that do not declare them, without a warning."""
    token = _taken.set((medium, unit))
    try:
        yield
    finally:
        _taken.reset(token)


@contextmanager
def one_warning(folder: Path) -> Iterator[None]:
    """Warn at most once inside the block, and for this folder, of files that do not declare their medium."""
    token = _folder.set(_folder.get() or folder)
    try:
        yield
    finally:
        _folder.reset(token)


def assumed_unit() -> str | None:
    """Return the unit of `assuming`."""
    return _taken.get()[1]


def assume_medium(path: Path) -> str:
    """Return the medium of a file that does not declare it: that of `assuming`, or "vacuum" with a warning.

    The warning is logged once per folder (see `one_warning`), and not by worker processes, whose parent does
    so.
    """
    if (medium := _taken.get()[0]) is not None:
        return medium
    folder = _folder.get() or path.parent
    if folder not in _assumed and multiprocessing.parent_process() is None:
        _assumed.add(folder)
        log.warning("%s does not declare whether its wavelengths are in vacuum or air: %s", path, _COST)
    return "vacuum"


def read_folder(
    path: Path, files: Sequence[Path], read_file: Callable[[Path], Spectra], kind: str
) -> Spectra:
    """Read and join the spectra of `files`, the contents of the file or folder `path`; see `read_each`.

    Raises:
        DataError: there are no files, or none can be read.
    """
    if not files:
        raise DataError(f"{path} contains no file that could be {kind}")
    return join(read_each(files, read_file, kind)[0])


def read_each(
    files: Iterable[Path], read_file: Callable[[Path], T], kind: str
) -> tuple[list[T], dict[Path, str]]:
    """Apply `read_file` to each file, leaving out files that raise `DataError`.

    An unreadable file never stops a batch: a warning with its name and the reason goes to the logger
    "specjax.surveys.io.many", which Python prints to stderr by default. If it is the only file, it is an
    error as usual.

    Args:
        files: the files, in order.
        read_file: reader of one file.
        kind: what a file should be, for the message.

    Returns:
        (results of the readable files, {file: reason} of the others).

    Raises:
        DataError: there are files, but none can be read.
    """
    results: list[T] = []
    refused: dict[Path, str] = {}
    for path in files:
        try:
            results.append(read_file(path))
        except DataError as error:
            refused[path] = str(error)
    if not results and refused:
        first = next(iter(refused.values()))
        raise DataError(
            first if len(refused) == 1 else f"none of {len(refused)} files is {kind}; the first: {first}"
        )
    for reason in refused.values():
        report_left_out(reason)
    return results, refused


def join(parts: Sequence[Spectra]) -> Spectra:
    """Concatenate spectra, on one shared (p,) grid if all lie on pieces of the same logarithmic grid.

    Spectra of LAMOST and SDSS begin and end at different pixels of one grid in log10 wavelength. Pixels that
    a spectrum lacks are masked.

    Raises:
        DataError: there is nothing to join, or the spectra are in different media.
    """
    grids = [part.wavelength for part in parts]
    if len(parts) < 2 or any(grid.ndim != 1 for grid in grids):
        return Spectra.concatenate(parts)
    if all(np.array_equal(grid, grids[0]) for grid in grids):
        return Spectra.concatenate(parts)
    shared = _shared_log_grid(grids)
    if shared is None:
        return Spectra.concatenate(parts)
    grid, starts = shared
    return Spectra.concatenate([_embed(part, grid, start) for part, start in zip(parts, starts, strict=True)])


def _shared_log_grid(grids: Sequence[FloatArray]) -> tuple[FloatArray, list[int]] | None:
    """Return the union of the grids and the first pixel of each; None unless all share one log grid."""
    logs = [np.log10(grid[[0, -1]]) for grid in grids]
    steps = np.array([np.diff(ends)[0] / (len(grid) - 1) for ends, grid in zip(logs, grids, strict=True)])
    begin = min(first for first, _ in logs)
    step = float(np.median(steps))
    if np.ptp(steps) > 1e-3 * step:
        return None
    offsets = np.array([(first - begin) / step for first, _ in logs])
    starts = np.rint(offsets).astype(int)
    ends = starts + np.array([len(grid) for grid in grids])
    union = 10.0 ** (begin + step * np.arange(ends.max()))
    for grid, start, end in zip(grids, starts, ends, strict=True):
        apart = np.abs(grid / union[start:end] - 1.0).max() / (step * np.log(10.0))
        if apart > _MAX_OFFSET:
            return None
    return union, starts.tolist()


def _embed(part: Spectra, grid: FloatArray, start: int) -> Spectra:
    """Place spectra on a longer grid, with masked pixels on either side."""
    width = ((0, 0), (start, len(grid) - start - part.flux.shape[1]))
    return replace(
        part,
        wavelength=grid,
        flux=np.pad(part.flux, width),
        ivar=np.pad(part.ivar, width),
        mask=np.pad(part.mask, width, constant_values=True),
    )
