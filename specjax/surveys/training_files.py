"""Rows of datasets in HDF5 and Parquet files that stay open."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from specjax.errors import DataError
from specjax.surveys.io import checksums
from specjax.surveys.io.tables import require_pyarrow
from specjax.typing import AnyArray

PARQUET = ".parquet"

LARGEST_GROUP = 1 << 26
"""Bytes of a column in a row group of a Parquet file: a group is read as a whole."""


class _File(Protocol):
    def read(self, dataset: str, rows: slice) -> AnyArray:
        """Read rows of a dataset."""

    def close(self) -> None:
        """Close the file."""


class Files:
    """Files that stay open while rows are read from them."""

    def __init__(self) -> None:
        self._open: dict[Path, _File] = {}

    def read(self, path: Path, dataset: str, rows: slice) -> AnyArray:
        """Read rows of a dataset of an HDF5 file, or of a column of a Parquet file.

        Raises:
            DataError: they cannot be read, or differ from their checksums.
        """
        try:
            if path not in self._open:
                self._open[path] = ParquetFile(path) if path.suffix.lower() == PARQUET else _Hdf5File(path)
            return self._open[path].read(dataset, rows)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: rows {rows.start} to {rows.stop} of {dataset}: {reason}") from None

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()


class _Hdf5File:
    def __init__(self, path: Path) -> None:
        import h5py

        self._file = h5py.File(path, "r")

    def read(self, dataset: str, rows: slice) -> AnyArray:
        values = np.asarray(self._file[dataset][rows])
        bad = checksums.damaged_rows(self._file, dataset, rows, values)
        if bad.any():
            raise ValueError(f"row {rows.start + int(bad.argmax())} is damaged: it differs from its checksum")
        return values

    def close(self) -> None:
        self._file.close()


class ParquetFile:
    """Rows of the columns of a Parquet file, whose last row group of every column stays in memory."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            DataError: pyarrow is missing, the file is no Parquet file, or its row groups are too large.
        """
        require_pyarrow("reading")
        import pyarrow.parquet

        try:
            self._file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {str(error).splitlines()[0]}") from None
        self.path, self.schema = path, self._file.schema_arrow
        about = self._file.metadata
        groups = [about.row_group(group) for group in range(about.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self._groups: dict[str, tuple[int, AnyArray]] = {}
        for group in groups:
            largest = max(
                (group.column(k).total_uncompressed_size for k in range(group.num_columns)), default=0
            )
            if largest > LARGEST_GROUP:
                raise DataError(
                    f"{path}: a row group of {group.num_rows:,} rows is read as a whole and too large:"
                    " write the file with row groups of about 1,000 rows"
                )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, dataset: str, rows: slice) -> AnyArray:
        """Read consecutive rows of a column: (n,), or (n, p) of lists of one length, NaN for nulls.

        Raises:
            ValueError: lists of different lengths.
            KeyError: there is no such column.
        """
        parts, start = [], rows.start
        while start < rows.stop:
            group = int(np.searchsorted(self._ends, start, side="right"))
            values, end = self._group(dataset, group), int(self._ends[group])
            first = start - (end - len(values))
            parts.append(values[first : first + rows.stop - start])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _group(self, dataset: str, group: int) -> AnyArray:
        if dataset not in self._groups or self._groups[dataset][0] != group:
            if dataset not in self.schema.names:
                raise KeyError(f"there is no column {dataset}")
            column = self._file.read_row_group(group, columns=[dataset]).column(0).combine_chunks()
            self._groups[dataset] = group, _array(column)
        return self._groups[dataset][1]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _array(column: Any) -> AnyArray:
    """Return a column of numbers, texts or lists of numbers as an array."""
    import pyarrow.compute as pc

    if not is_list(column.type):
        values: AnyArray = column.to_numpy(zero_copy_only=False)
        return values
    lengths = pc.list_value_length(column)
    if lengths.null_count or len(pc.unique(lengths)) > 1:
        raise ValueError("not all rows have lists of the same length")
    flat: AnyArray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def is_list(kind: Any) -> bool:
    """Return whether a column of this type holds one list per row."""
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)
