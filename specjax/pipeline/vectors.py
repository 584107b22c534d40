"""Catalogues of vectors, as `specjax embed` writes them: .h5, .parquet (a file or a folder) and .fits.

Vectors are read in blocks of rows, so that a catalogue may be larger than memory. Ids and flags are read as a
whole.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from specjax.errors import DataError
from specjax.surveys.arrays import HDF5, open_hdf5
from specjax.surveys.io.tables import flag_texts, id_texts, read_table
from specjax.typing import AnyArray, Float32Array, IntArray, StrArray

VECTORS = "vectors"
"""The column of vectors."""

_BLOCK = 1 << 16  # rows
_READ = 1 << 24  # bytes, of which a digest is taken at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """The vectors of n spectra in a file or a folder.

    Attributes:
        path: the file, or the folder of Parquet files.
        id: (n,) ids of the spectra.
        flag: (n,) their flags.
        width: the length of a vector.
        meta: what the file says of its model: model, digest, dtype.
        table: the vectors (n, width) of a format that is read as a whole, FITS.
    """

    path: Path
    id: StrArray
    flag: StrArray
    width: int
    meta: Mapping[str, Any]
    table: Float32Array | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.id)

    def blocks(self) -> Iterator[Float32Array]:
        """Yield the vectors of all rows in their order, (m, width) each; unusable spectra have NaN."""
        if self.table is not None:
            yield from (self.table[start : start + _BLOCK] for start in range(0, len(self), _BLOCK))
        elif self.path.suffix.lower() in HDF5:
            with open_hdf5(self.path) as file:
                for start in range(0, len(self), _BLOCK):
                    yield np.asarray(file[VECTORS][start : start + _BLOCK], np.float32)
        else:
            yield from _parquet_blocks(self.path, self.width)

    def rows(self, wanted: IntArray) -> Float32Array:
        """Return the vectors (m, width) of some rows (m,)."""
        found = np.empty((len(wanted), self.width), np.float32)
        start = 0
        for block in self.blocks():
            here = (wanted >= start) & (wanted < start + len(block))
            found[here] = block[wanted[here] - start]
            start += len(block)
        return found

    @cached_property
    def content(self) -> str:
        """The SHA-256 of the file, or of the files of the folder in their order."""
        total = hashlib.sha256()
        for path in _files(self.path):
            with path.open("rb") as stream:
                while part := stream.read(_READ):
                    total.update(part)
        return total.hexdigest()


def open_catalogue(path: str | Path) -> Catalogue:
    """Open a file or a folder that `specjax embed` has written.

    Raises:
        DataError: it does not exist, is damaged, or holds no vectors.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"there is no catalogue of vectors at {path}")
    suffix = path.suffix.lower()
    try:
        if suffix in HDF5:
            return _open_hdf5(path)
        if suffix == ".parquet" or path.is_dir():
            return _open_parquet(path)
        if suffix == ".fits":
            return _from_table(path, read_table(path))
    except (KeyError, ValueError, OSError, IndexError, AttributeError) as error:
        raise DataError(f"{path} is not a complete catalogue of vectors: {error}") from None
    raise _no_vectors(path, "it is neither .h5, .parquet nor .fits")


def is_catalogue(path: Path) -> bool:
    """Whether a path holds vectors, and not spectra."""
    try:
        open_catalogue(path)
    except DataError:
        return False
    return True


def _no_vectors(path: Path, why: str) -> DataError:
    return DataError(f"{path} is no catalogue of vectors, such as `specjax embed` writes: {why}")


def _open_hdf5(path: Path) -> Catalogue:
    with open_hdf5(path) as file:
        _check_names(path, list(file))
        vectors = file[VECTORS]
        return Catalogue(
            path=path,
            id=id_texts(file["id"][:]),
            flag=flag_texts(file["flag"][:]),
            width=_width(path, vectors.shape),
            meta=dict(file.attrs),
        )


def _open_parquet(path: Path) -> Catalogue:
    try:
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow: pip install 'specjax[parquet]'") from None
    files = _files(path)
    if not files:
        raise _no_vectors(path, "the folder holds no Parquet files")
    columns: dict[str, list[AnyArray]] = {"id": [], "flag": []}
    try:
        for each in files:
            with ParquetFile(each) as file:
                schema = file.schema_arrow
                _check_names(each, schema.names)
                for name, parts in columns.items():
                    parts.append(file.read([name])[name].to_numpy())
        width = schema.field(VECTORS).type.list_size
    except ArrowException as error:
        raise DataError(f"{each} is not a readable Parquet file: {error}") from None
    return Catalogue(
        path=path,
        id=id_texts(np.concatenate(columns["id"])),
        flag=flag_texts(np.concatenate(columns["flag"])),
        width=width,
        meta=_parquet_meta(schema.metadata or {}),
    )


def _from_table(path: Path, table: Table) -> Catalogue:
    _check_names(path, table.colnames)
    vectors = np.asarray(table[VECTORS], np.float32)
    return Catalogue(
        path=path,
        id=id_texts(table["id"]),
        flag=flag_texts(table["flag"]),
        width=_width(path, vectors.shape),
        meta={name.lower(): value for name, value in table.meta.items()},
        table=vectors,
    )


def _check_names(path: Path, names: list[str]) -> None:
    missing = [name for name in ("id", VECTORS, "flag") if name not in names]
    if missing == [VECTORS] and "tokens" in names:
        raise _no_vectors(path, "it holds tokens; embed the spectra without --tokens")
    if missing:
        raise _no_vectors(path, f"it has no column {', '.join(missing)}")


def _width(path: Path, shape: tuple[int, ...]) -> int:
    if len(shape) != 2:
        raise _no_vectors(path, f"its vectors have the shape {shape}")
    return shape[1]


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def _parquet_meta(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the metadata that astropy keeps in the schema of a Parquet file."""
    from astropy.table.meta import get_header_from_yaml

    lines = metadata.get(b"table_meta_yaml", b"").decode().splitlines()
    return dict(get_header_from_yaml(lines).get("meta", {})) if lines else {}


def _parquet_blocks(path: Path, width: int) -> Iterator[Float32Array]:
    from pyarrow.parquet import ParquetFile

    for each in _files(path):
        with ParquetFile(each) as file:
            for batch in file.iter_batches(_BLOCK, columns=[VECTORS]):
                values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                yield values.reshape(-1, width).astype(np.float32, copy=False)
