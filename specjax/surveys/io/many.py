"""Many files, each one spectrum or more: read what can be read, report what cannot, put it on one grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.typing import FloatArray

log = logging.getLogger(__name__)

_SAME_PIXEL = 0.02  # pixels by which grids may be out of step; headers round coefficients to 1e-3 of one

T = TypeVar("T")

_assumed: set[Path] = set()
_left_out: ContextVar[list[str] | None] = ContextVar("left_out", default=None)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """The reasons of all that readers leave out inside the block, in order; they are logged as well."""
    reasons: list[str] = []
    token = _left_out.set(reasons)
    try:
        yield reasons
    finally:
        _left_out.reset(token)


def leave_out(reason: str) -> None:
    """Say that something is left out, and why: a warning of this module's logger, and to `collecting`."""
    log.warning("left out: %s", reason)
    if (reasons := _left_out.get()) is not None:
        reasons.append(reason)


def assume_vacuum(path: Path) -> str:
    """Vacuum, with a warning, once a file and process, that nothing says so."""
    if path not in _assumed:
        _assumed.add(path)
        log.warning(
            "%s does not say if its wavelengths are in vacuum or air: vacuum is assumed (84 km/s if wrong)",
            path,
        )
    return "vacuum"


def read_folder(
    path: Path, files: Sequence[Path], read_file: Callable[[Path], Spectra], what: str
) -> Spectra:
    """Spectra of `files`, which are what `path`, a file or a folder, holds; bad files as `read_each` says.

    Raises:
      DataError: no files, or none that could be read.
    """
    if not files:
        raise DataError(f"{path} holds no file that could be {what}")
    return join(read_each(files, read_file, what)[0])


def read_each(
    files: Iterable[Path], read_file: Callable[[Path], T], what: str
) -> tuple[list[T], dict[Path, str]]:
    """What `read_file` gives for each file, and for those that it refused, why.

    One bad file never stops a batch: it is left out, and a warning with its name and the reason goes to the
    logger "specjax.surveys.io.many", which Python prints to stderr unless told otherwise. A single file that
    is refused is an error as usual.

    Args:
      files: the files, in order.
      read_file: reader of one file.
      what: what was looked for, for the message.

    Returns:
      (results of the files that could be read, {file: reason}).

    Raises:
      DataError: not one file could be read.
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
            first if len(refused) == 1 else f"none of {len(refused)} files is {what}; the first: {first}"
        )
    for reason in refused.values():
        leave_out(reason)
    return results, refused


def join(parts: Sequence[Spectra]) -> Spectra:
    """`Spectra.concatenate`, but on one shared (p,) grid where all are pieces of the same logarithmic one.

    Spectra of LAMOST and SDSS begin or end at different pixels of one grid in log10 wavelength. Pixels that a
    spectrum does not have are masked.

    Raises:
      DataError: nothing to join, or spectra in different media.
    """
    grids = [part.wavelength for part in parts]
    if len(parts) < 2 or any(grid.ndim != 1 for grid in grids):
        return Spectra.concatenate(parts)
    if all(grid.shape == grids[0].shape and np.array_equal(grid, grids[0]) for grid in grids):
        return Spectra.concatenate(parts)
    shared = _shared_log_grid(grids)
    if shared is None:
        return Spectra.concatenate(parts)
    grid, starts = shared
    return Spectra.concatenate([_onto(part, grid, start) for part, start in zip(parts, starts, strict=True)])


def _shared_log_grid(grids: Sequence[FloatArray]) -> tuple[FloatArray, list[int]] | None:
    """The union of the grids and where each begins in it; None if they are not pieces of one log grid."""
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
        if apart > _SAME_PIXEL:
            return None
    return union, starts.tolist()


def _onto(part: Spectra, grid: FloatArray, start: int) -> Spectra:
    before, after = start, len(grid) - start - part.flux.shape[1]
    width = ((0, 0), (before, after))
    return Spectra(
        wavelength=grid,
        flux=np.pad(part.flux, width),
        ivar=np.pad(part.ivar, width),
        mask=np.pad(part.mask, width, constant_values=True),
        id=part.id,
        meta=part.meta,
        medium=part.medium,
        survey=part.survey,
        has_ivar=part.has_ivar,
    )
