"""Reader of the HDF5 files written by `specjax prepare`: spectra on the model grids, mapped into memory.

A file has datasets flux, ivar, mask (n, 1462), wavelength and id, a group meta of columns (n,) and, if there
are Gaia XP spectra, a group gaia_xp with the same on 343 samples. Attributes record how they were made.
Arrays are contiguous, so that processing a part of a large file reads only that part.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.arrays import HDF5, open_hdf5
from specjax.typing import AnyArray

if TYPE_CHECKING:
    import h5py

FORMAT, VERSION = "specjax-prepared", 1
XP_GROUP, META_GROUP = "gaia_xp", "meta"


def recognise(path: Path) -> bool:
    """Whether `path` is a file written by `specjax prepare`."""
    if not path.is_file() or path.suffix.lower() not in HDF5:
        return False
    try:
        with open_hdf5(path) as file:
            return bool(file.attrs.get("format") == FORMAT)
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
        DataError: the file is damaged, or from a later version of specjax.
    """
    spectra = _side(Path(path), "", rows)
    assert spectra is not None
    return spectra


def read_xp(path: Path) -> Spectra | None:
    """Read the Gaia XP spectra, row for row as `read`; None if there are none or the file is of another kind.

    Rows without a Gaia XP spectrum, or with one of too little coverage, are completely masked.

    Raises:
        DataError: as `read`.
    """
    return _side(Path(path), XP_GROUP) if recognise(Path(path)) else None


def read_plan(path: Path) -> str:
    """Return the digest of the inputs and options from which a prepared file was made."""
    with open_hdf5(path) as file:
        return str(file.attrs.get("plan", ""))


def _side(path: Path, group: str, rows: tuple[int, int] | None = None) -> Spectra | None:
    part = slice(*(rows or (None,)))
    with open_hdf5(path) as file:
        if file.attrs.get("version", VERSION) > VERSION:
            raise DataError(f"{path} was prepared by a later version of specjax")
        if group and group not in file:
            return None
        side = file[group] if group else file
        try:
            flux, ivar, mask = (_mapped(path, side[name], part) for name in ("flux", "ivar", "mask"))
            return Spectra(
                wavelength=side["wavelength"][:],
                flux=flux,
                ivar=ivar,
                mask=mask,
                id=_text(file["id"][part]),
                meta={name: _text(column[part]) for name, column in side[META_GROUP].items()},
                survey=str(side.attrs["survey"]),
                has_ivar=bool(side.attrs["has_ivar"]),
                prepared=json.loads(side.attrs["prepared"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a complete prepared file: {error}") from None


def _mapped(path: Path, dataset: "h5py.Dataset", rows: slice) -> AnyArray:
    """Map rows of a dataset into memory; read them if it is not contiguous because the file was repacked."""
    offset = dataset.id.get_offset()
    if offset is None or not dataset.size:
        return np.asarray(dataset[rows])
    whole = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return np.asarray(whole if rows == slice(None) else whole[rows])


def _text(column: AnyArray) -> AnyArray:
    return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
