"""Rows of spectra on the model grids in files of any size, read one block at a time.

Pretraining streams the files of `training_parts`. `find` lists what they hold without reading a spectrum, and
`Rows` reads consecutive rows as if all files were one. Nothing is kept per spectrum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.surveys.training_files import Files
from specjax.surveys.training_parts import PREFIX, Part, Side, parts_of
from specjax.typing import AnyArray, FloatArray, IntArray
from specjax.wavelength import MODEL_GRIDS

TOWERS = ("lamost", "gaia_xp")

_FILL = {"lamost": 1.0, "gaia_xp": 0.0}  # value of pixels that must not be used


def find(spectra: Sequence[Path], xp: Sequence[Path] = (), labels: Sequence[str] = ()) -> list[Part]:
    """List the parts of files, test splits left out.

    Args:
        spectra: files with LAMOST spectra, which may also hold the Gaia XP spectra of the same stars.
        xp: files with Gaia XP spectra, row for row those of `spectra` unless that is empty.
        labels: columns that every part must have.

    Raises:
        DataError: a file that cannot be read or has another layout, a missing label, or files whose rows do
            not fit each other.
    """
    first, second = ([part for path in paths for part in parts_of(Path(path))] for paths in (spectra, xp))
    if first and second:
        parts = [_paired(*pair) for pair in _same_length(first, second)]
    else:
        parts = first or [replace(part, sides=_only(part, "gaia_xp")) for part in second]
    for part in parts:
        missing = [name for name in labels if name not in part.labels]
        if missing:
            raise DataError(f"{part.path} has no column {' and no '.join(missing)}{_known(part)}")
    return [part for part in parts if part.split != "test" and len(part)]


def _known(part: Part) -> str:
    return f"; its columns are {', '.join(sorted(part.labels))}" if part.labels else ""


def _only(part: Part, tower: str) -> Mapping[str, Side]:
    if tower not in part.sides:
        raise DataError(f"{part.path} has no Gaia XP spectra")
    return {tower: part.sides[tower]}


def _same_length(first: Sequence[Part], second: Sequence[Part]) -> Iterator[tuple[Part, Part]]:
    """Pair the parts of two lists of files, which must have the same splits and numbers of rows."""
    shapes = [[(part.split, len(part)) for part in parts] for parts in (first, second)]
    if shapes[0] != shapes[1]:
        texts = [", ".join(f"{split or 'rows'} {n}" for split, n in shape) for shape in shapes]
        raise DataError(
            "the Gaia XP files must have the spectra of the same stars row for row:"
            f" they have {texts[1]}, the LAMOST files {texts[0]}"
        )
    return zip(first, second, strict=True)


def _paired(first: Part, second: Part) -> Part:
    """Add the Gaia XP spectra of another file, whose ids must be the same at both ends."""
    sides = {**first.sides, **_only(second, "gaia_xp")}
    if first.ids and second.ids and len(first):
        for row in (first.start, first.stop - 1):
            _check_same_star(first, second, row)
    return replace(first, sides=sides)


def _check_same_star(first: Part, second: Part, row: int) -> None:
    files = Files()
    names = [_id(files, part, row) for part in (first, second)]
    files.close()
    if names[0] != names[1]:
        raise DataError(
            f"row {row} is {names[0]} in {first.path} and {names[1]} in {second.path}:"
            " the Gaia XP files must have the same stars row for row"
        )


class Rows:
    """Rows of several parts, read as if they were those of one file."""

    def __init__(self, parts: Sequence[Part], towers: Sequence[str], labels: Sequence[str] = ()) -> None:
        """Name what to read of each row.

        Args:
            parts: see `find`.
            towers: towers whose spectra are read.
            labels: columns that are read.

        Raises:
            DataError: a part has no spectra of one of the towers.
        """
        for part in parts:
            for tower in set(towers) - set(part.sides):
                raise DataError(f"{part.path} has no {_TITLES[tower]} spectra")
        self.parts, self.towers, self.labels = list(parts), tuple(towers), tuple(labels)
        self.ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._files = Files()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def empty(self, count: int) -> dict[str, AnyArray]:
        """Allocate the arrays of `count` rows, for `read_into`.

        They are flux (n, 1462) and valid for LAMOST, xp_flux (n, 343) and xp_valid for Gaia XP, labels
        (n, k) and row (n,), the number of the row among all rows.
        """
        arrays: dict[str, AnyArray] = {"row": np.empty(count, np.int64)}
        for tower in self.towers:
            prefix, pixels = PREFIX[tower], MODEL_GRIDS[tower].size
            arrays[f"{prefix}flux"] = np.empty((count, pixels), np.float32)
            arrays[f"{prefix}valid"] = np.empty((count, pixels), np.bool_)
        if self.labels:
            arrays["labels"] = np.empty((count, len(self.labels)), np.float32)
        return arrays

    def read(self, start: int, count: int) -> dict[str, AnyArray]:
        """Read `count` rows from `start` on, see `empty`; after the last row comes the first one."""
        arrays = self.empty(count)
        self.read_into(arrays, 0, start, count)
        return arrays

    def read_into(self, arrays: Mapping[str, AnyArray], at: int, start: int, count: int) -> None:
        """Read `count` rows from `start` on into the rows of `arrays` from `at` on."""
        while count:
            start %= len(self)
            part, first = self._locate(start)
            size = min(count, part.stop - first)
            target = {name: array[at : at + size] for name, array in arrays.items()}
            target["row"][:] = np.arange(start, start + size)
            self._read_part(part, first, target)
            start, at, count = start + size, at + size, count - size

    def ids(self, rows: IntArray) -> list[str]:
        """Return the ids of rows (n,); those of a file without ids are its name and the number of the row."""
        return [_id(self._files, *self._locate(int(row))) for row in np.asarray(rows)]

    def _locate(self, row: int) -> tuple[Part, int]:
        """Return the part that a row is in, and its number in that file."""
        index = int(np.searchsorted(self.ends, row, side="right"))
        part = self.parts[index]
        return part, part.stop - (int(self.ends[index]) - row)

    def _read_part(self, part: Part, first: int, target: Mapping[str, AnyArray]) -> None:
        rows = slice(first, first + len(target["row"]))
        for tower in self.towers:
            flux, valid = (target[f"{PREFIX[tower]}{name}"] for name in ("flux", "valid"))
            _read_side(self._files, part.sides[tower], rows, flux, valid, _FILL[tower])
        for column, name in enumerate(self.labels):
            values = self._files.read(part.path, part.labels[name], rows)
            target["labels"][:, column] = values.reshape(len(values))


_TITLES = {"lamost": "LAMOST", "gaia_xp": "Gaia XP"}


def _read_side(files: Files, side: Side, rows: slice, flux: AnyArray, valid: AnyArray, fill: float) -> None:
    values = files.read(side.path, side.flux, rows)
    flux[:] = values.reshape(flux.shape)
    np.isfinite(flux, out=valid)
    if side.ivar is not None:
        ivar = files.read(side.path, side.ivar, rows).reshape(flux.shape)
        valid &= np.isfinite(ivar) & (ivar > 0)
    if side.mask is not None:
        valid &= files.read(side.path, side.mask, rows).reshape(flux.shape) == 0
    if not valid.all():
        flux[~valid] = fill


def _id(files: Files, part: Part, row: int) -> str:
    """Return the id of a row of a part, numbered as in its file."""
    if part.ids is None:
        return f"{part.path.name}:{part.group}-{row}" if part.group else f"{part.path.name}-{row}"
    value = files.read(part.path, part.ids, slice(row, row + 1)).ravel()[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def held_out(parts: Sequence[Part], share: float) -> tuple[list[Part], list[Part]]:
    """Divide parts into those to train on and those held out.

    Held out are the splits "val" or, if there are none, the last rows of every part: the fraction `share`,
    and at least one row of a part with more than one.
    """
    if any(part.split == "val" for part in parts):
        return [part for part in parts if part.split != "val"], [p for p in parts if p.split == "val"]
    train, kept = [], []
    for part in parts:
        cut = part.stop - min(max(round(share * len(part)), 1), len(part) - 1) if share else part.stop
        train.append(replace(part, stop=cut))
        kept.append(replace(part, start=cut))
    return [part for part in train if len(part)], [part for part in kept if len(part)]


def label_scale(labels: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation (k,) of labels (n, k), missing ones (NaN) left out.

    Both are NaN for a label that all stars lack.
    """
    known = np.isfinite(labels)
    count = np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    mean = np.where(known, labels, 0).sum(axis=0) / count
    variance = np.where(known, (labels - mean) ** 2, 0).sum(axis=0) / count
    return mean, np.maximum(np.sqrt(variance), 1e-6)
