"""Reader and writer of arrays in .npz or .h5 files: `wavelength`, `flux`, optionally `ivar`, `mask`, `id`."""

import io
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.npz import NpzError, read_npz
from specjax.spectra import Spectra
from specjax.surveys.io import checksums
from specjax.surveys.io.many import assume_medium, assumed_unit
from specjax.typing import AnyArray, FloatArray, StrArray
from specjax.wavelength import check_wavelength, columns_between, in_angstrom, widened

if TYPE_CHECKING:
    import h5py

NPZ, HDF5 = (".npz",), (".h5", ".hdf5", ".hdf")

_MAX_UNPACKED, _MAX_RATIO = 2 * 1024**3, 100  # bytes, and times the file's size: flux hardly compresses
_BYTES = 9  # per pixel of a simulated spectrum: flux and ivar in float32, and the mask
_PIXELS = ("wavelength", "flux", "ivar", "mask")
_FIELDS = (*_PIXELS, "id")
_BESIDE = 16  # pixels, more than affect each other when gaps and runs of zeros are masked
_DECLARED = {"wavelength_medium": "medium", "wavelength_unit": "unit", "survey": "survey"}


def recognise(path: Path) -> bool:
    """Whether `path` has the name of an array file."""
    return path.is_file() and path.suffix.lower() in NPZ + HDF5


def read(
    path: Path,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    *,
    rows: tuple[int, int] | None = None,
    within: tuple[float, float] | None = None,
) -> Spectra:
    """Read the spectra of one file.

    Arrays: wavelength (p,) or (n, p); flux (n, p) or (p,); optionally ivar and mask, shaped like flux
    (nonzero mask: do not use), and id (n,), by default the file's name for one spectrum, else the row. The
    file may declare `wavelength_medium` ("vacuum", "air"), `wavelength_unit` ("angstrom", "nm", "um",
    "log10") and `survey` as text arrays (HDF5: or attributes). Any other array of length n becomes a meta
    column.

    Args:
        path: .npz, .h5 or .hdf5.
        wavelength_medium: the medium, if the file does not declare it; default vacuum.
        wavelength_unit: the unit, if the file does not declare it; default Angstrom.
        rows: first row and the one after the last, to read only these; all if None. From HDF5 only these are
            loaded into memory.
        within: wavelengths in Angstrom outside which pixels are left out, but for a few, to save time.

    Raises:
        DataError: the file is damaged, arrays are missing or do not fit each other, or the medium or unit
            contradicts the file.
    """
    path = Path(path)
    arrays = _read_npz(path, rows) if path.suffix.lower() in NPZ else _read_hdf5(path, rows)
    missing = [name for name in ("wavelength", "flux") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}: it contains {_list(arrays)}")
    declared = {key: _word(path, name, arrays.pop(name)) for name, key in _DECLARED.items() if name in arrays}
    for key, wanted in (("medium", wavelength_medium), ("unit", wavelength_unit)):
        if wanted is not None and declared.setdefault(key, wanted) != wanted:
            raise DataError(f"{path} declares that its wavelength {key} is {declared[key]}, not {wanted}")
    unit = declared.get("unit") or assumed_unit()
    count = len(np.atleast_2d(arrays["flux"]))
    extra = {name: value for name, value in arrays.items() if name not in _FIELDS}
    if within is not None:
        arrays |= _pixels_within(arrays, unit, *within)
    try:
        return Spectra.build(
            arrays["wavelength"],
            arrays["flux"],
            arrays.get("ivar"),
            arrays.get("mask"),
            _ids(arrays.get("id", _names(path, count, rows))),
            meta={name: _text(value) for name, value in extra.items() if np.shape(value) == (count,)},
            medium=declared.get("medium") or assume_medium(path),
            survey=declared.get("survey", path.stem),
            unit=unit,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _pixels_within(arrays: Mapping[str, Any], unit: str | None, low: float, high: float) -> dict[str, Any]:
    """Return the arrays that have pixels without those far outside a range; none if they are not valid."""
    found = {name: np.asarray(arrays[name]) for name in _PIXELS if name in arrays}
    try:
        grid = in_angstrom(found["wavelength"].astype(np.float64), unit)
        check_wavelength(grid)
    except (DataError, TypeError, ValueError):  # for `Spectra.build` to refuse
        return {}
    part = columns_between(grid, low, high)
    if not part.stop or any(array.shape[-1:] != grid.shape[-1:] for array in found.values()):
        return {}
    return {name: array[..., widened(part, _BESIDE)] for name, array in found.items()}


def declares_medium(path: Path) -> bool:
    """Return whether a file says what its wavelengths are in; False if it cannot be read."""
    try:
        if path.suffix.lower() in NPZ:
            with zipfile.ZipFile(path) as archive:
                return "wavelength_medium.npy" in archive.namelist()
        with open_hdf5(path) as file:
            return "wavelength_medium" in file.attrs or "wavelength_medium" in file
    except (DataError, OSError, zipfile.BadZipFile):
        return False


def write(path: Path, spectra: Spectra, notes: Mapping[str, str] | None = None) -> None:
    """Write spectra to an .npz file that `read` reads back, and notes, which it does not return."""
    arrays: dict[str, Any] = {**(notes or {}), **spectra.meta}
    arrays |= {"wavelength": spectra.wavelength, "flux": spectra.flux, "mask": spectra.mask, "id": spectra.id}
    arrays |= {"wavelength_medium": spectra.medium, "wavelength_unit": "angstrom", "survey": spectra.survey}
    if spectra.has_ivar:
        arrays["ivar"] = spectra.ivar
    # np.savez does not accept an array named "file", a column of most surveys.
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


def check_space(path: Path, count: int, pixels: int) -> None:
    """Check that spectra in float32 fit on the disk of `path`, whose folder need not exist yet.

    Raises:
        DataError: they do not.
    """
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free, needed = shutil.disk_usage(folder).free, _BYTES * count * pixels
    if needed > free:
        have = f"{free / 1e9:,.1f} GB are free in {folder}"
        raise DataError(f"{path} would take {needed / 1e9:,.1f} GB, and only {have}")


class Stream:
    """An HDF5 file that is written in parts, see `stream`."""

    def __init__(self, disk: "_Disk", file: "h5py.File", count: int, pixels: int) -> None:
        self._disk, self._file, self._row = disk, file, 0
        shape = (count, pixels)
        self._flux = file.create_dataset("flux", shape, np.float32)
        self._ivar = file.create_dataset("ivar", shape, np.float32)
        # Masks of few pixels compress a hundredfold at the speed of writing.
        chunks = (min(count, 256), pixels)
        packed = {"compression": "gzip", "compression_opts": 1}
        self._mask = file.create_dataset("mask", shape, bool, chunks=chunks, **packed)

    def append(self, flux: AnyArray, ivar: AnyArray, mask: AnyArray) -> None:
        """Write the next rows, each (k, p).

        Raises:
            DataError: they cannot be written, such as on a full disk.
        """
        rows = slice(self._row, self._row + len(flux))
        self._flux[rows], self._ivar[rows], self._mask[rows] = flux, ivar, mask
        self._disk.check()
        self._row = rows.stop

    def add_columns(self, columns: Mapping[str, AnyArray]) -> None:
        """Write columns (n,) of numbers or texts; `read` returns them as ids and meta.

        Raises:
            DataError: they cannot be written.
        """
        for name, column in columns.items():
            self._file[name] = for_hdf5(column)
        self._disk.check()


def for_hdf5(column: AnyArray) -> AnyArray:
    """Return a column (n,) as HDF5 stores it: texts in UTF-8, and not of zero bytes."""
    if column.dtype.kind != "U":
        return column
    encoded = np.char.encode(column, "utf-8")
    return encoded if encoded.dtype.itemsize else encoded.astype("S1")


class _Disk(io.FileIO):
    """A file for HDF5 to write to that reports errors, such as of a full disk, in `check` alone.

    An error that HDF5 hears of while it closes a dataset or a file crashes the interpreter.
    """

    def __init__(self, path: Path, destination: Path) -> None:
        super().__init__(path, "w+")
        self._destination, self._error = destination, ""

    def check(self) -> None:
        """Raise a DataError if anything could not be written."""
        if self._error:
            raise DataError(f"cannot write {self._destination}: {self._error}")

    def write(self, data: Any, /) -> int:
        """Write all bytes; nothing after an error."""
        view = memoryview(data).cast("B")
        rest = view
        try:
            while rest and not self._error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = error.strerror or str(error)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Change the size of the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error.strerror or str(error)
            return self.tell() if size is None else size


@contextmanager
def stream(
    path: Path, count: int, wavelength: FloatArray, *, survey: str, notes: Mapping[str, str]
) -> Iterator[Stream]:
    """Write an HDF5 file of float32 spectra that `read` reads back, part by part.

    The file appears when the `with` block ends, unless it ends with an error.

    Args:
        path: .h5 or .hdf5.
        count: number of spectra.
        wavelength: (p,) vacuum Angstrom.
        survey: origin of the spectra.
        notes: further attributes of the file.

    Raises:
        DataError: the file cannot be written, such as on a full disk.
    """
    import h5py

    with atomic_file(path) as temporary, _Disk(temporary, path) as disk:
        with h5py.File(disk, "w", libver=checksums.LIBVER) as file:
            about = {"wavelength_medium": "vacuum", "wavelength_unit": "angstrom", "survey": survey}
            checksums.set_attributes(file, {**about, **notes})
            file["wavelength"] = wavelength
            yield Stream(disk, file, count, wavelength.size)
            file.flush()
            disk.check()
            checksums.seal(file)
        disk.check()


def flux_shape(path: Path) -> tuple[int, int]:
    """Return the numbers of spectra and of pixels of an HDF5 file, without reading its flux.

    Raises:
        DataError: the file is not readable HDF5, or has no flux.
    """
    with open_hdf5(path) as file:
        if "flux" not in file:
            raise DataError(f"{path} has no flux: it contains {_list(file)}")
        shape = file["flux"].shape
        return (int(shape[0]), int(shape[1])) if len(shape) == 2 else (1, int(np.prod(shape)))


@contextmanager
def open_hdf5(path: Path) -> Iterator["h5py.File"]:
    """Open an HDF5 file for reading, for the duration of a `with` block.

    Raises:
        DataError: the file cannot be read, is truncated, or is not HDF5.
    """
    import h5py  # slow to import, and most users have no HDF5 files

    try:
        with h5py.File(path, "r") as file:
            yield file
    except MemoryError:
        raise DataError(f"the arrays of {path} do not fit into memory") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py raises all of these
        line = (str(error).strip("'\"").splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a readable HDF5 file: {line}") from None


def _read_npz(path: Path, rows: tuple[int, int] | None) -> dict[str, Any]:
    try:
        arrays = read_npz(path, limit=max(_MAX_UNPACKED, _MAX_RATIO * path.stat().st_size))
    except (OSError, NpzError) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from None
    count = _row_count(arrays)
    return {name: _part(name, array, count, rows) for name, array in arrays.items()}


def _read_hdf5(path: Path, rows: tuple[int, int] | None) -> dict[str, Any]:
    with open_hdf5(path) as file:
        checksums.check_links(file, path)
        arrays = {name: item for name, item in file.items() if hasattr(item, "dtype")}  # groups have none
        count = _row_count(arrays)
        checksums.check_attributes(file, path)
        values = {name: _part(name, item, count, rows)[()] for name, item in arrays.items()}
        kept = _intact(path, file, values, {n for n, a in arrays.items() if _is_shared(n, a, count)}, rows)
        return {**{name: file.attrs[name] for name in _DECLARED if name in file.attrs}, **kept}


def _intact(
    path: Path,
    file: "h5py.File",
    values: dict[str, Any],
    shared: Collection[str],
    rows: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return the arrays without the rows that differ from their checksums, which are reported.

    Raises:
        DataError: an array that all spectra share is damaged, or all rows are.
    """
    part = slice(*(rows or (None,)))
    bad = [checksums.damaged_rows(file, name, part, v) for name, v in values.items() if name not in shared]
    for name in shared:
        checksums.check_whole(file, name, path, values[name])
    if not bad or not (lost := np.logical_or.reduce(bad)).any():
        return values
    first = part.start or 0
    values.setdefault("id", np.arange(first, first + len(lost)).astype(np.str_))
    ids = np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values["id"]])
    checksums.report_damaged(path, lost, ids, first)
    return {name: array if name in shared else array[~lost] for name, array in values.items()}


def _row_count(arrays: Mapping[str, Any]) -> int | None:
    """Return the number of spectra; None if there is a single one or no flux."""
    return int(arrays["flux"].shape[0]) if "flux" in arrays and arrays["flux"].ndim == 2 else None


def _part(name: str, array: Any, count: int | None, rows: tuple[int, int] | None) -> Any:
    """Select the rows of an array with one row per spectrum; shared arrays are returned unchanged."""
    return array if rows is None or _is_shared(name, array, count) else array[slice(*rows)]


def _is_shared(name: str, array: Any, count: int | None) -> bool:
    """Return whether an array belongs to all spectra, rather than one row of it to each."""
    return array.ndim == 0 or array.shape[0] != count or (name == "wavelength" and array.ndim == 1)


def _word(path: Path, name: str, value: Any) -> str:
    """Return the single text in `value`."""
    texts = _text(value).ravel()
    if texts.size != 1:
        raise DataError(f"{path}: {name} should be one text, not {texts.size}")
    return str(texts[0])


def _ids(ids: Any) -> StrArray | None:
    return None if ids is None else np.char.strip(_text(np.atleast_1d(ids)).astype(np.str_))


def _names(path: Path, count: int, rows: tuple[int, int] | None) -> Any:
    """Return the ids of spectra that have none: the name of a file of a single one, or numbers of rows."""
    if rows is not None:
        return np.arange(*rows)
    return [path.stem] if count == 1 else None


def _text(values: Any) -> AnyArray:
    """Decode strings, which HDF5 returns as arrays of bytes or of objects; other arrays are unchanged."""
    array = np.asarray(values)
    if array.dtype.kind == "S" or (
        array.dtype.kind == "O" and array.size and isinstance(array.flat[0], bytes)
    ):
        return np.array([bytes(item).decode() for item in array.ravel()]).reshape(array.shape)
    return array


def _list(arrays: Mapping[str, Any]) -> str:
    return ", ".join(sorted(arrays)) or "nothing"
