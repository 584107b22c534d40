"""Checksums of HDF5 files: written with the data by specjax, and compared when the data are read.

The group `crc32` of a file mirrors the rest of it: for every dataset it has one of the same name with the
CRC-32 of each row, and for every attribute of a group one of the same name with the CRC-32 of its value.
Rows are read and mapped as without checksums, and damage costs the rows that it hit and no others. What
specjax did not write, such as a column that a user added, has no checksum and is read without a check. HDF5
itself guards the structure of a file in the format of `LIBVER`.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.surveys.io.many import report_left_out
from specjax.typing import AnyArray, BoolArray, StrArray

log = logging.getLogger(__name__)

GROUP = "crc32"
LIBVER = ("v110", "v110")
"""The HDF5 format of written files, whose headers, links and small attributes have checksums of their own."""

_BLOCK = 1 << 24  # bytes of a dataset in memory while a file is sealed
_unsealed: set[Path] = set()  # files without checksums that have been reported


def seal(file: Any) -> None:
    """Add the checksums of everything that is in an open HDF5 file."""
    file.flush()
    items: list[tuple[str, Any]] = [("", file)]
    file.visititems(lambda name, item: items.append((name, item)))
    sums = file.create_group(GROUP)
    for name, item in items:
        if hasattr(item, "dtype"):
            sums[name] = np.concatenate([np.zeros(0, np.uint32), *map(row_sums, _blocks(item))])
        else:
            group = sums.require_group(name) if name else sums
            for key, value in item.attrs.items():
                group.attrs[key] = _sum_of_value(value)


def set_attributes(item: Any, values: Mapping[str, Any]) -> None:
    """Set attributes; texts are stored with fixed lengths, which h5py returns as bytes, see `text`.

    Those of variable length are elsewhere in the file without a checksum, where damage can let HDF5 read on
    without end.
    """
    for name, value in values.items():
        if isinstance(value, str):
            encoded = value.encode()
            value = np.array(encoded, dtype=f"S{max(len(encoded), 1)}")
        item.attrs[name] = value


def text(value: Any) -> str:
    """Return an attribute as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def is_sealed(file: Any) -> bool:
    """Return whether an open HDF5 file has checksums."""
    return GROUP in file


def report_unsealed(path: Path) -> None:
    """Warn, once per file and process, that damage to a file cannot be seen."""
    if path not in _unsealed:
        _unsealed.add(path)
        log.warning("%s has no checksums, so damage to it is not noticed: prepare it anew to add them", path)


def check_attributes(file: Any, path: Path, group: str = "") -> None:
    """Compare the attributes of a group, and the names of what it contains, with the checksums.

    Raises:
        DataError: an attribute differs, or something that has a checksum is missing.
    """
    sums = file.get(f"{GROUP}/{group}")
    if sums is None:
        return
    item = file[group] if group else file
    for key, value in sums.attrs.items():
        if key not in item.attrs or _sum_of_value(item.attrs[key]) != value:
            raise DataError(f"{path} is damaged: its attribute {key} differs from its checksum")
    if missing := sorted(set(sums) - set(item)):
        raise DataError(f"{path} is damaged: it lacks {missing[0]}")


def check_links(file: Any, path: Path) -> None:
    """Check that everything that an HDF5 file lists can be opened; h5py lists what it cannot open as None.

    Raises:
        DataError: the header of a dataset or of a group is damaged.
    """
    for name, item in file.items():
        if item is None and type(file.get(name, getlink=True)).__name__ == "HardLink":
            raise DataError(f"{path} is damaged: its {name} cannot be opened")


def damaged_rows(file: Any, name: str, rows: slice, values: AnyArray) -> BoolArray:
    """Compare rows of a dataset with their checksums.

    Args:
        file: the open HDF5 file.
        name: of the dataset.
        rows: those that were read.
        values: (k, ...) what they hold.

    Returns:
        (k,) whether a row is damaged; no row of a dataset without checksums is.
    """
    if is_sealed(file) and name in file[GROUP]:
        known = file[GROUP][name][rows] if np.ndim(values) else file[GROUP][name][:]
        found = row_sums(values)
        return found != known if known.shape == found.shape else np.ones(len(found), np.bool_)
    return np.zeros(len(np.atleast_1d(values)), np.bool_)


def check_whole(file: Any, name: str, path: Path, values: AnyArray) -> None:
    """Compare a dataset that all spectra share with its checksums.

    Raises:
        DataError: it is damaged.
    """
    if damaged_rows(file, name, slice(None), values).any():
        raise DataError(f"{path} is damaged: its {name} differs from its checksums")


def report_damaged(path: Path, bad: BoolArray, ids: StrArray, first: int = 0, kind: str = "spectra") -> None:
    """Report damaged rows, one line per run of consecutive rows, and raise an error if no row is left.

    Args:
        path: the file.
        bad: (k,) whether a row is damaged.
        ids: (k,) as they are in the file.
        first: number of the first row in the file.
        kind: what the rows are, for the message.

    Raises:
        DataError: all rows are damaged.
    """
    lines = [
        f"{path}: {_named(start, stop, ids, first)} of the {kind} is damaged: it differs from its checksums"
        for start, stop in _runs(bad)
    ]
    if lines and bad.all():
        raise DataError(lines[0])
    for line in lines:
        report_left_out(line)


def row_sums(values: AnyArray) -> AnyArray:
    """Return the CRC-32 of the bytes of each row (k, ...), (k,) uint32; texts of any length are allowed."""
    values = np.atleast_1d(values)
    if values.dtype.kind == "O":
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in values.ravel()]
        return np.array([zlib.crc32(text) for text in texts], np.uint32)
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    width = len(data) // max(len(values), 1)
    sums = (zlib.crc32(data[at : at + width]) for at in range(0, len(data), max(width, 1)))
    return np.fromiter(sums, np.uint32, len(values) if width else 0)


def _blocks(dataset: Any) -> Iterator[AnyArray]:
    """Yield the rows of a dataset, some at a time."""
    if not dataset.shape:
        yield np.atleast_1d(dataset[()])
        return
    width = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, len(dataset), step):
        yield dataset[start : start + step]


def _sum_of_value(value: Any) -> int:
    """Return the CRC-32 of an attribute, a text or an array of numbers."""
    if isinstance(value, str | bytes):
        return zlib.crc32(value.encode() if isinstance(value, str) else value)
    array = np.asarray(value)
    return zlib.crc32(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes())


def _runs(bad: BoolArray) -> list[tuple[int, int]]:
    """Return (first, one after the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _named(start: int, stop: int, ids: StrArray, first: int) -> str:
    """Name rows by number and id, whose characters may be damaged, too."""
    names = [ascii(str(ids[row]))[1:-1][:40] for row in (start, stop - 1)]
    if stop - start == 1:
        return f"row {first + start} ({names[0]})"
    return f"each of rows {first + start} to {first + stop - 1} ({names[0]} to {names[1]})"
