"""What files for pretraining hold: SpecCLIP's HDF5 files, files of `specjax prepare`, and Parquet tables.

`parts_of` looks at shapes and names only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from specjax.errors import DataError
from specjax.surveys import prepared, specclip
from specjax.surveys.arrays import open_hdf5
from specjax.surveys.training_files import PARQUET, ParquetFile, is_list
from specjax.wavelength import MODEL_GRIDS

PREFIX = {"lamost": "", "gaia_xp": "xp_"}
"""Prefix of the names of a tower's arrays."""

_IDS = ("id", "source_id", "source_ids")
_SPECCLIP = {"lamost": "lamost_spectra", "gaia_xp": "gaia_spectra"}


class Side(NamedTuple):
    """The datasets of one tower's spectra in a file."""

    path: Path
    flux: str
    ivar: str | None = None
    mask: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive rows of the spectra of one file, or of a split of it.

    Attributes:
        path: the file of the ids and labels.
        group: the group that holds them, "" for the file itself.
        split: "train", "val" or "test"; "" for a file without splits.
        sides: the spectra of each tower, row for row.
        start: first row.
        stop: row after the last one.
        ids: dataset of the ids; None if there is none.
        labels: label name -> dataset.
    """

    path: Path
    group: str
    split: str
    sides: Mapping[str, Side]
    start: int
    stop: int
    ids: str | None
    labels: Mapping[str, str]

    def __len__(self) -> int:
        return self.stop - self.start


def parts_of(path: Path) -> list[Part]:
    """Return the parts of a file.

    Raises:
        DataError: there is no such file, or it has another layout.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if prepared.recognise(path):
        return [_prepared_part(path)]
    if path.suffix.lower() == PARQUET:
        return [_parquet_part(path)]
    if specclip.recognise(path):
        with open_hdf5(path) as file:
            return [_specclip_part(path, file, name) for name in specclip.SPLITS if name in file]
    raise DataError(
        f"{path} is neither a training file of SpecCLIP, nor a file of `specjax prepare`, nor a Parquet table"
    )


def _prepared_part(path: Path) -> Part:
    with open_hdf5(path) as file:
        groups = {"lamost": "", "gaia_xp": f"{prepared.XP_GROUP}/"}
        sides = {
            tower: Side(path, *(f"{group}{name}" for name in ("flux", "ivar", "mask")))
            for tower, group in groups.items()
            if f"{group}flux" in file
        }
        count = _count(path, file, sides)
        labels = _columns(file, prepared.META_GROUP, count)
        ids = "id" if "id" in file else None
    return Part(path=path, group="", split="", sides=sides, start=0, stop=count, ids=ids, labels=labels)


def _specclip_part(path: Path, file: Any, name: str) -> Part:
    group = file[name]
    sides = {tower: Side(path, f"{name}/{key}") for tower, key in _SPECCLIP.items() if key in group}
    if not sides and "spectra" in group:
        tower = _tower(path, f"{name}/spectra", group["spectra"].shape)
        ivar = f"{name}/ivar" if "ivar" in group else None
        sides = {tower: Side(path, f"{name}/spectra", ivar)}
    count = _count(path, file, sides)
    labels = _columns(file, name, count) | _columns(file, f"{name}/{prepared.META_GROUP}", count)
    ids = f"{name}/source_ids" if "source_ids" in group else None
    return Part(path=path, group=name, split=name, sides=sides, start=0, stop=count, ids=ids, labels=labels)


def _parquet_part(path: Path) -> Part:
    file = ParquetFile(path)
    try:
        kinds, count = dict(zip(file.schema.names, file.schema.types, strict=True)), len(file)
        sides = {}
        for tower, prefix in PREFIX.items():
            if f"{prefix}flux" in kinds:
                flux, ivar, mask = (f"{prefix}{name}" for name in ("flux", "ivar", "mask"))
                sides[tower] = Side(
                    path, flux, ivar if ivar in kinds else None, mask if mask in kinds else None
                )
        if not sides:
            raise DataError(f"{path} has no column flux or xp_flux; its columns are {', '.join(kinds)}")
        for tower, side in sides.items():
            for name in filter(None, side[1:]):
                _check_lists(file, name, tower)
    finally:
        file.close()
    labels = {name: name for name, kind in kinds.items() if str(kind) in ("float", "double", "halffloat")}
    ids = next((name for name in _IDS if name in kinds), None)
    return Part(path=path, group="", split="", sides=sides, start=0, stop=count, ids=ids, labels=labels)


def _check_lists(file: ParquetFile, name: str, tower: str) -> None:
    """Check that a column has one list per row with a value for each pixel, in the first row group."""
    pixels, kind = MODEL_GRIDS[tower].size, file.schema.field(name).type
    if not is_list(kind):
        raise DataError(f"{file.path}: the column {name} is {kind}, not a list of {pixels} numbers per row")
    try:
        found = file.read(name, slice(0, min(len(file), 1)))
    except ValueError as error:
        raise DataError(f"{file.path}: the column {name}: {error}") from None
    if len(file) and found.shape[1] != pixels:
        raise DataError(f"{file.path}: the column {name} has {found.shape[1]} values per row, not {pixels}")


def _tower(path: Path, name: str, shape: tuple[int, ...]) -> str:
    pixels = shape[1] if len(shape) > 1 else 0
    for tower, grid in MODEL_GRIDS.items():
        if grid.size == pixels:
            return tower
    raise DataError(f"{path}: {name} has {pixels} pixels, neither LAMOST's 1462 nor Gaia XP's 343")


def _count(path: Path, file: Any, sides: Mapping[str, Side]) -> int:
    """Return the number of rows of all datasets, whose shapes must fit each other and the model grids."""
    counts = {}
    for tower, side in sides.items():
        for name in filter(None, side[1:]):
            shape = file[name].shape
            if len(shape) not in (2, 3) or shape[1] != MODEL_GRIDS[tower].size or shape[2:] not in ((), (1,)):
                raise DataError(f"{path}: {name} {shape} is not (n, {MODEL_GRIDS[tower].size})")
            counts[name] = shape[0]
    if len(set(counts.values())) > 1:
        raise DataError(f"{path}: {', '.join(f'{name} has {n} rows' for name, n in counts.items())}")
    return next(iter(counts.values()), 0)


def _columns(file: Any, group: str, count: int) -> dict[str, str]:
    """Return the columns of numbers in a group: name -> dataset."""
    if group not in file:
        return {}
    return {
        name: f"{group}/{name}"
        for name, item in file[group].items()
        if getattr(item, "shape", None) in ((count,), (count, 1)) and item.dtype.kind == "f"
    }
