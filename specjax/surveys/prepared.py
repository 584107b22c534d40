"""The HDF5 file that `specjax prepare` writes: spectra on the model grids, mapped into memory, not read.

Datasets flux, ivar, mask (n, 1462), wavelength, id, a group meta of columns (n,) and, where there is a Gaia
XP side, a group gaia_xp with the same on 343 samples. Attributes say how they were made. Arrays are
contiguous, so that a run over a part of a large file touches that part alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.arrays import HDF5, open_hdf5

if TYPE_CHECKING:
    import h5py

FORMAT, VERSION = "specjax-prepared", 1
XP_GROUP, META_GROUP = "gaia_xp", "meta"


def recognise(path: Path) -> bool:
    """Whether `path` is a file that `specjax prepare` wrote."""
    if not path.is_file() or path.suffix.lower() not in HDF5:
        return False
    try:
        with open_hdf5(path) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except DataError:
        return False


def read(path: Path) -> Spectra:
    """The LAMOST side: what `preprocess.to_lamost` gave, with its flags in `meta`.

    Returns:
      Spectra whose flux, ivar and mask are views of the file (float32, float32, bool); keep the file while
      they are in use. `prepared` says what was done; meta has every column of the readers that gave them,
      and file, flag, masked_fraction.

    Raises:
      DataError: the file is damaged, or of a later version of specjax.
    """
    spectra = _side(Path(path), "")
    assert spectra is not None
    return spectra


def read_xp(path: Path) -> Spectra | None:
    """The Gaia XP side, the same rows as `read`; None where the file has none or is something else.

    Rows without a partner, or with one that covers too little, have every sample masked. Raises DataError as
    `read`.
    """
    return _side(Path(path), XP_GROUP) if recognise(Path(path)) else None


def read_plan(path: Path) -> str:
    """The digest of the inputs and options that a prepared file was made from."""
    with open_hdf5(path) as file:
        return str(file.attrs.get("plan", ""))


def _side(path: Path, group: str) -> Spectra | None:
    with open_hdf5(path) as file:
        if file.attrs.get("version", VERSION) > VERSION:
            raise DataError(f"{path} was prepared by a later version of specjax")
        if group and group not in file:
            return None
        side = file[group] if group else file
        try:
            flux, ivar, mask = (_mapped(path, side[name]) for name in ("flux", "ivar", "mask"))
            return Spectra(
                wavelength=side["wavelength"][:],
                flux=flux,
                ivar=ivar,
                mask=mask,
                id=_text(file["id"][:]),
                meta={name: _text(column[:]) for name, column in side[META_GROUP].items()},
                survey=str(side.attrs["survey"]),
                has_ivar=bool(side.attrs["has_ivar"]),
                prepared=json.loads(side.attrs["prepared"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a whole prepared file: {error}") from None


def _mapped(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """The dataset as a view of the file; read where it was repacked in another way."""
    offset = dataset.id.get_offset()
    if offset is None or not dataset.size:
        return np.asarray(dataset[:])
    return np.asarray(np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape))


def _text(column: np.ndarray) -> np.ndarray:
    return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
