"""Reader of the HDF5 files written by `specjax prepare`: spectra on the model grids, mapped into memory.

A file has datasets flux, ivar, mask (n, 1462), wavelength and id, a group meta of columns (n,) and, if there
are Gaia XP spectra, a group gaia_xp with the same on 343 samples. Attributes record how they were made.
Arrays are contiguous, so that processing a part of a large file reads only that part. Every row has checksums
(see `io.checksums`): damaged rows are left out and reported.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specjax.errors import DataError
from specjax.flags import Flag
from specjax.spectra import Spectra
from specjax.surveys.arrays import HDF5, open_hdf5
from specjax.surveys.io import checksums
from specjax.surveys.io.tables import flag_texts
from specjax.typing import AnyArray, BoolArray, StrArray

if TYPE_CHECKING:
    import h5py

FORMAT, VERSION = "specjax-prepared", 3
SEALED = 2
"""The first version with checksums."""

XP_GROUP, META_GROUP = "gaia_xp", "meta"


def recognise(path: Path) -> bool:
    """Whether `path` is a file written by `specjax prepare`."""
    if not path.is_file() or path.suffix.lower() not in HDF5:
        return False
    try:
        with open_hdf5(path) as file:
            return checksums.text(file.attrs.get("format", "")) == FORMAT
    except DataError:
        return False


def read(path: Path, *, rows: tuple[int, int] | None = None) -> Spectra:
    """Read the spectra on the LAMOST grid, as returned by `preprocess.to_lamost`, with flags in `meta`.

    Args:
        path: the file.
        rows: first row and the one after the last, to read only these; all if None.

    Returns:
        Spectra whose flux, ivar and mask are views of the file (float32, float32, bool); keep the file while
        they are in use. `prepared` records the preprocessing; meta has all columns of the original readers,
        and file, flag, masked_fraction.

    Raises:
        DataError: the file is damaged other than in single rows, all rows are damaged, or it is from a later
            version of specjax.
    """
    part = slice(*(rows or (None,)))
    with _opened(Path(path)) as file:
        columns, bad = _columns(file, Path(path), "", part)
        checksums.report_damaged(path, bad, _names(columns["id"]), part.start or 0)
        return _spectra(file, "", columns if not bad.any() else _kept(columns, ~bad))


def read_xp(path: Path, *, rows: tuple[int, int] | None = None) -> Spectra | None:
    """Read the Gaia XP spectra, row for row as `read`; None if there are none or the file is of another kind.

    Rows without a Gaia XP spectrum, or with a damaged or incomplete one, are completely masked.

    Raises:
        DataError: as `read`.
    """
    if not recognise(Path(path)):
        return None
    with _opened(Path(path)) as file:
        if XP_GROUP not in file:
            return None
        part = slice(*(rows or (None,)))
        columns, bad = _columns(file, Path(path), XP_GROUP, part)
        _, left_out = _columns(file, Path(path), "", part)
        names = _names(columns["id"])
        checksums.report_damaged(path, bad & ~left_out, names, part.start or 0, kind="Gaia XP spectra")
        if bad.any():
            columns = _without_flux(columns, bad)
        return _spectra(file, XP_GROUP, columns if not left_out.any() else _kept(columns, ~left_out))


def read_side(path: Path, tower: str, *, rows: tuple[int, int] | None = None) -> Spectra:
    """Read the spectra on the grid of one tower, "lamost" or "gaia_xp"; otherwise as `read`.

    Raises:
        DataError: also, there are no Gaia XP spectra in the file.
    """
    lamost = read(path, rows=rows)  # also reports the rows that are left out of both sides
    if tower == "lamost":
        return lamost
    spectra = read_xp(path, rows=rows)
    if spectra is None:
        raise DataError(f"{path} has no Gaia XP spectra: give them to `specjax prepare` with --xp")
    return spectra


def read_plan(path: Path) -> str:
    """Return the digest of the inputs and options from which a prepared file was made."""
    with open_hdf5(path) as file:
        return checksums.text(file.attrs.get("plan", ""))


_Columns = dict[str, AnyArray]
"""Datasets of one side with one row per spectrum: flux, ivar, mask, id and meta/NAME."""


@contextmanager
def _opened(path: Path) -> Iterator["h5py.File"]:
    """Open a prepared file; whatever is missing in it is an error.

    Raises:
        DataError: the file is damaged, or from a later version of specjax.
    """
    with open_hdf5(path) as file:
        version = file.attrs.get("version", VERSION)
        if version > VERSION:
            raise DataError(f"{path} was prepared by a later version of specjax")
        try:
            if checksums.is_sealed(file):
                checksums.check_attributes(file, path)
            elif version >= SEALED:
                raise DataError(f"{path} is damaged: it lacks its checksums")
            else:
                checksums.report_unsealed(path)
            yield file
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"{path} is not a complete prepared file: {error}") from None


def _columns(file: "h5py.File", path: Path, group: str, rows: slice) -> tuple[_Columns, BoolArray]:
    """Return rows of the datasets of a side, and (k,) which rows are damaged.

    Raises:
        DataError: what all rows share is damaged.
    """
    side, prefix = (file[group], f"{group}/") if group else (file, "")
    checksums.check_attributes(file, path, group)
    checksums.check_attributes(file, path, prefix + META_GROUP)
    checksums.check_whole(file, f"{prefix}wavelength", path, side["wavelength"][:])
    columns = {name: _mapped(path, side[name], rows) for name in ("flux", "ivar", "mask")}
    columns |= {f"{META_GROUP}/{name}": column[rows] for name, column in side[META_GROUP].items()}
    bad = np.zeros(len(columns["flux"]), np.bool_)
    for name, values in columns.items():
        bad |= checksums.damaged_rows(file, prefix + name, rows, values)
    columns["id"] = file["id"][rows]
    return columns, bad | checksums.damaged_rows(file, "id", rows, columns["id"])


def _kept(columns: _Columns, rows: BoolArray) -> _Columns:
    return {name: column[rows] for name, column in columns.items()}


def _without_flux(columns: _Columns, rows: BoolArray) -> _Columns:
    """Mask all pixels of some rows, as of stars without a Gaia XP spectrum."""
    empty: dict[str, Any] = {"flux": np.float32(0), "ivar": np.float32(0), "mask": True}
    masked = {name: np.where(rows[:, None], value, columns[name]) for name, value in empty.items()}
    flag, fraction = (f"{META_GROUP}/{name}" for name in ("flag", "masked_fraction"))
    said = {
        flag: np.where(rows, str(Flag.NO_PARTNER).encode(), columns[flag]),
        fraction: np.where(rows, 1.0, columns[fraction]),
    }
    return {**columns, **masked, **said}


def _spectra(file: "h5py.File", group: str, columns: _Columns) -> Spectra:
    side, prefix = file[group] if group else file, f"{META_GROUP}/"
    return Spectra(
        wavelength=side["wavelength"][:],
        flux=columns["flux"],
        ivar=columns["ivar"],
        mask=columns["mask"],
        id=_text(columns["id"]),
        meta={
            name.removeprefix(prefix): _meta_text(name.removeprefix(prefix), column)
            for name, column in columns.items()
            if name.startswith(prefix)
        },
        survey=checksums.text(side.attrs["survey"]),
        has_ivar=bool(side.attrs["has_ivar"]),
        prepared=json.loads(checksums.text(side.attrs["prepared"])),
    )


def _mapped(path: Path, dataset: "h5py.Dataset", rows: slice) -> AnyArray:
    """Map rows of a dataset into memory; read them if it is not contiguous because the file was repacked."""
    offset = dataset.id.get_offset()
    if offset is None or not dataset.size:
        return np.asarray(dataset[rows])
    whole = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return np.asarray(whole if rows == slice(None) else whole[rows])


def _names(ids: AnyArray) -> StrArray:
    """Return ids for a message, whatever bytes they have."""
    return np.char.decode(ids, "utf-8", "replace") if ids.dtype.kind == "S" else ids


def _meta_text(name: str, column: AnyArray) -> AnyArray:
    """Return a column of the metadata; flags as this version spells them."""
    return flag_texts(column) if name == "flag" else _text(column)


def _text(column: AnyArray) -> AnyArray:
    return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
