"""A user's own spectra in an .npz or .h5 file: `wavelength`, `flux`, optionally `ivar`, `mask`, `id`."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.spectra import Spectra

NPZ, HDF5 = (".npz",), (".h5", ".hdf5", ".hdf")

_FIELDS = ("wavelength", "flux", "ivar", "mask", "id")
_TEXT = {"wavelength_medium": "medium", "wavelength_unit": "unit", "survey": "survey"}


def recognise(path: Path) -> bool:
    """Whether `path` is named as an array file."""
    return path.is_file() and path.suffix.lower() in NPZ + HDF5


def read(path: Path, wavelength_medium: str | None = None, wavelength_unit: str | None = None) -> Spectra:
    """Spectra from the arrays of one file.

    Arrays: wavelength (p,) or (n, p); flux (n, p) or (p,); optionally ivar and mask as flux (nonzero = do not
    use), id (n,). The file may say `wavelength_medium` ("vacuum", "air"), `wavelength_unit` ("angstrom",
    "nm", "um", "log10") and `survey` as text arrays (HDF5: or attributes). Any other array of length n
    becomes a meta column.

    Args:
      path: .npz, .h5 or .hdf5.
      wavelength_medium: as above; needed where the file does not say it and it is not vacuum.
      wavelength_unit: as above; needed where the file does not say it and it is not Angstrom.

    Raises:
      DataError: not such a file, arrays missing, shapes that do not fit, or a medium or unit that contradicts
        the file.
    """
    path = Path(path)
    arrays = _read_npz(path) if path.suffix.lower() in NPZ else _read_hdf5(path)
    missing = [name for name in ("wavelength", "flux") if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path} has no {' and no '.join(missing)}: it holds {found}")
    said = {key: str(_text(arrays.pop(name)).item()) for name, key in _TEXT.items() if name in arrays}
    for key, wanted in (("medium", wavelength_medium), ("unit", wavelength_unit)):
        if wanted is not None and said.setdefault(key, wanted) != wanted:
            raise DataError(f"{path} says its wavelength {key} is {said[key]}, not {wanted}")
    ids = _names(arrays.get("id"))
    extra = {key: value for key, value in arrays.items() if key not in _FIELDS}
    count = len(np.atleast_2d(arrays["flux"]))
    try:
        return Spectra.build(
            arrays["wavelength"],
            arrays["flux"],
            arrays.get("ivar"),
            arrays.get("mask"),
            ids,
            meta={key: _text(value) for key, value in extra.items() if np.shape(value) == (count,)},
            medium=said.get("medium", "vacuum"),
            survey=said.get("survey", path.stem),
            unit=said.get("unit"),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def write(path: Path, spectra: Spectra) -> None:
    """Spectra as an .npz file that `read` takes back."""
    arrays: dict[str, Any] = dict(spectra.meta)
    arrays |= {"wavelength": spectra.wavelength, "flux": spectra.flux, "mask": spectra.mask, "id": spectra.id}
    arrays |= {"wavelength_medium": spectra.medium, "wavelength_unit": "angstrom", "survey": spectra.survey}
    if spectra.has_ivar:
        arrays["ivar"] = spectra.ivar
    with atomic_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        # The stream is ours to close: np.load leaves its own open when it fails.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from None


def _read_hdf5(path: Path) -> dict[str, Any]:
    import h5py  # slow to import, and most users have no HDF5

    try:
        with h5py.File(path, "r") as file:
            arrays = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
            return {**{name: file.attrs[name] for name in _TEXT if name in file.attrs}, **arrays}
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file: {error}") from None


def _names(ids: Any) -> Any:
    return None if ids is None else np.char.strip(_text(np.atleast_1d(ids)).astype(np.str_))


def _text(values: Any) -> np.ndarray:
    """HDF5 gives strings as bytes, in arrays of bytes or of objects."""
    array = np.asarray(values)
    if array.dtype.kind == "S" or (
        array.dtype.kind == "O" and array.size and isinstance(array.flat[0], bytes)
    ):
        return np.array([bytes(item).decode() for item in array.ravel()]).reshape(array.shape)
    return array
