"""A user's own spectra in an .npz or .h5 file: `wavelength`, `flux`, optionally `ivar`, `mask`, `id`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.many import assume_vacuum

NPZ, HDF5 = (".npz",), (".h5", ".hdf5", ".hdf")

_LARGE, _PACKED = 2 * 1024**3, 100  # bytes, and times a file's size: real flux hardly packs
_FIELDS = ("wavelength", "flux", "ivar", "mask", "id")
_TEXT = {"wavelength_medium": "medium", "wavelength_unit": "unit", "survey": "survey"}


def recognise(path: Path) -> bool:
    """Whether `path` is named as an array file."""
    return path.is_file() and path.suffix.lower() in NPZ + HDF5


def read(
    path: Path,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    *,
    rows: tuple[int, int] | None = None,
) -> Spectra:
    """Spectra from the arrays of one file.

    Arrays: wavelength (p,) or (n, p); flux (n, p) or (p,); optionally ivar and mask as flux (nonzero = do not
    use), id (n,). The file may say `wavelength_medium` ("vacuum", "air"), `wavelength_unit` ("angstrom",
    "nm", "um", "log10") and `survey` as text arrays (HDF5: or attributes). Any other array of length n
    becomes a meta column.

    Args:
      path: .npz, .h5 or .hdf5.
      wavelength_medium: as above; needed where the file does not say it and it is not vacuum.
      wavelength_unit: as above; needed where the file does not say it and it is not Angstrom.
      rows: first row and the one after the last, to read those alone; all where None. Of HDF5 no others are
        taken into memory.

    Raises:
      DataError: not such a file, arrays missing, shapes that do not fit, or a medium or unit that contradicts
        the file.
    """
    path = Path(path)
    arrays = _read_npz(path, rows) if path.suffix.lower() in NPZ else _read_hdf5(path, rows)
    missing = [name for name in ("wavelength", "flux") if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path} has no {' and no '.join(missing)}: it holds {found}")
    said = {key: _word(path, name, arrays.pop(name)) for name, key in _TEXT.items() if name in arrays}
    for key, wanted in (("medium", wavelength_medium), ("unit", wavelength_unit)):
        if wanted is not None and said.setdefault(key, wanted) != wanted:
            raise DataError(f"{path} says its wavelength {key} is {said[key]}, not {wanted}")
    ids = _names(arrays.get("id", None if rows is None else np.arange(*rows)))
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
            medium=said.get("medium") or assume_vacuum(path),
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
    # Not np.savez, which takes no array named "file", a column of most surveys.
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


def row_count(path: Path) -> int:
    """The number of spectra in an HDF5 file, from the shape of its flux.

    Raises:
      DataError: not a readable HDF5 file, or none with flux.
    """
    with open_hdf5(path) as file:
        if "flux" not in file:
            raise DataError(f"{path} has no flux: it holds {', '.join(sorted(file)) or 'nothing'}")
        return int(file["flux"].shape[0]) if file["flux"].ndim == 2 else 1


def _read_npz(path: Path, rows: tuple[int, int] | None) -> dict[str, Any]:
    try:
        # The stream is ours to close: np.load leaves its own open when it fails.
        with path.open("rb") as stream:
            with zipfile.ZipFile(stream) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max(_LARGE, _PACKED * path.stat().st_size):
                raise DataError(f"{path} would unpack to {unpacked / 1e9:.0f} GB, which is not spectra")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except MemoryError:
        raise DataError(f"{path} holds arrays that memory does not") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    return {name: _part(name, array, _rows_of(arrays), rows) for name, array in arrays.items()}


def _read_hdf5(path: Path, rows: tuple[int, int] | None) -> dict[str, Any]:
    with open_hdf5(path) as file:
        arrays = {name: item for name, item in file.items() if hasattr(item, "dtype")}  # and not a group
        count = _rows_of(arrays)
        return {
            **{name: file.attrs[name] for name in _TEXT if name in file.attrs},
            **{name: _part(name, item, count, rows)[()] for name, item in arrays.items()},
        }


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, for the block to take what it needs from.

    Raises:
      DataError: it cannot be read, is cut short or is something else.
    """
    import h5py  # slow to import, and most users have no HDF5

    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file: {error}") from None


def _rows_of(arrays: Mapping[str, Any]) -> int | None:
    """The number of spectra, None where there is one alone or no flux."""
    return int(arrays["flux"].shape[0]) if "flux" in arrays and arrays["flux"].ndim == 2 else None


def _part(name: str, array: Any, count: int | None, rows: tuple[int, int] | None) -> Any:
    """The rows of an array that has one for each spectrum; a shared wavelength and the like as they are."""
    shared = array.ndim == 0 or array.shape[0] != count or (name == "wavelength" and array.ndim == 1)
    return array if rows is None or shared else array[slice(*rows)]


def _word(path: Path, name: str, value: Any) -> str:
    """The one text that `value` holds."""
    texts = _text(value).ravel()
    if texts.size != 1:
        raise DataError(f"{path}: {name} should be one text, not {texts.size}")
    return str(texts[0])


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
