"""Reader of SpecCLIP's HDF5 training files: normalised spectra on the model grids.

Groups train, val and test contain pairs gaia_spectra (n, 343) and lamost_spectra (n, 1462), with source_ids
in the published test data; or the spectra of one tower, `spectra`, and optionally their `ivar`. A trailing
axis of length 1 is common. LAMOST flux is continuum-normalised and interpolated, XP flux divided by its value
at 550 nm.
"""

from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.flags import FLAG_DTYPE, MAX_MASKED, Flag
from specjax.spectra import Spectra
from specjax.surveys.arrays import HDF5, open_hdf5
from specjax.typing import Float32Array, StrArray
from specjax.wavelength import MODEL_GRIDS

SPLITS = ("train", "val", "test")

_NAMES = {"lamost": "lamost_spectra", "gaia_xp": "gaia_spectra"}
_PREPARED: dict[str, dict[str, Any]] = {
    "lamost": {"method": "interpolate", "fwhm": None, "fwhm_to": None, "velocity_column": None},
    "gaia_xp": {"fwhm_from": None},
}


def recognise(path: Path) -> bool:
    """Whether `path` is a training file of SpecCLIP."""
    if not path.is_file() or path.suffix.lower() not in HDF5:
        return False
    try:
        with open_hdf5(path) as file:
            return bool(_groups(file))
    except DataError:
        return False


def read(path: Path) -> Spectra:
    """Read all splits of a file: its LAMOST spectra, or its XP spectra if it has none of LAMOST.

    Returns:
        Spectra on a model grid, as returned by `preprocess.to_lamost` or `to_gaia_xp`, with non-finite pixels
        masked. ids are source_ids, else "train-0" and so on; meta: split, flag, masked_fraction.

    Raises:
        DataError: the file has another layout, or its spectra are on neither grid.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        groups = _groups(file)
        if not groups:
            found = ", ".join(sorted(file)) or "nothing"
            raise DataError(f"{path} has no group train, val or test with spectra: it contains {found}")
        return Spectra.concatenate([_read_group(path, name, file[name]) for name in groups])


def read_xp(path: Path) -> Spectra | None:
    """Read the Gaia XP spectra of pairs, row for row as `read`; None if the file has no pairs."""
    if not recognise(path):
        return None
    with open_hdf5(path) as file:
        groups = _groups(file)
        if any(_NAMES["lamost"] not in file[name] or _NAMES["gaia_xp"] not in file[name] for name in groups):
            return None
        parts = [_side(path, name, file[name], _NAMES["gaia_xp"], "gaia_xp") for name in groups]
        return Spectra.concatenate(parts)


def _groups(file: Any) -> list[str]:
    found = [name for name in SPLITS if name in file and hasattr(file[name], "keys")]
    return [name for name in found if any(key in file[name] for key in (*_NAMES.values(), "spectra"))]


def _read_group(path: Path, name: str, group: Any) -> Spectra:
    for tower, dataset in _NAMES.items():
        if dataset in group:
            return _side(path, name, group, dataset, tower)
    pixels = group["spectra"].shape[1] if group["spectra"].ndim > 1 else 0
    for tower, grid in MODEL_GRIDS.items():
        if grid.size == pixels:
            return _side(path, name, group, "spectra", tower)
    raise DataError(f"{path}: {name}/spectra has {pixels} pixels, neither LAMOST's 1462 nor Gaia XP's 343")


def _side(path: Path, name: str, group: Any, dataset: str, tower: str) -> Spectra:
    """Read the spectra of one tower in a split, in the form that `preprocess` returns."""
    flux = _array(path, group, dataset, tower)
    has_ivar = dataset == "spectra" and "ivar" in group
    ivar = _array(path, group, "ivar", tower) if has_ivar else np.ones_like(flux)
    good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    masked = 1.0 - good.mean(axis=1)
    flag = np.select([masked == 1, masked > MAX_MASKED], [Flag.NO_COVERAGE, Flag.MASKED_FRACTION], Flag.GOOD)
    return Spectra(
        wavelength=MODEL_GRIDS[tower],
        flux=np.where(good, flux, np.float32(tower == "lamost")),
        ivar=np.where(good, ivar, np.float32(0)),
        mask=~good,
        id=_ids(name, group, len(flux)),
        meta={
            "split": np.full(len(flux), name, dtype="<U5"),
            "flag": flag.astype(FLAG_DTYPE),
            "masked_fraction": masked,
        },
        survey=tower,
        has_ivar=has_ivar,
        prepared={"tower": tower, **_PREPARED[tower]},
    )


def _ids(name: str, group: Any, count: int) -> StrArray:
    """Return the source_ids of a split; without any, its name and the row numbers."""
    if "source_ids" not in group:
        return np.array([f"{name}-{row}" for row in range(count)], dtype=np.str_)
    values = group["source_ids"][:].ravel()
    ids = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    return np.array(ids, dtype=np.str_)


def _array(path: Path, group: Any, dataset: str, tower: str) -> Float32Array:
    """Read (n, pixels) values of a dataset with or without a trailing axis of length 1."""
    array = np.asarray(group[dataset][:], dtype=np.float32)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or array.shape[1] != MODEL_GRIDS[tower].size:
        raise DataError(f"{path}: {group.name}/{dataset} {array.shape} is not (n, {MODEL_GRIDS[tower].size})")
    return array
