"""The output of a run, in one of several formats, with at most one part of the wide columns in memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.overwrite import check_replaceable
from specjax.pipeline.parquet import write_parquet
from specjax.pipeline.parts import Columns, read_columns
from specjax.surveys.arrays import HDF5, for_hdf5
from specjax.surveys.io.tables import SUFFIXES, require_pyarrow, write_table
from specjax.typing import AnyArray
from specjax.units import column_description, column_ucd, column_unit

_WIDE = (*HDF5, ".parquet", ".fits", ".npz")


def check_format(out: Path, *, vectors: bool = False, partitioned: bool = False) -> None:
    """Check that a file, or a folder of partitions, can be written; call it before a long computation.

    Raises:
        DataError: the suffix is unknown, a text table would hold vectors, partitions are not in Parquet, a
            folder is in the place of the file, or pyarrow is missing for .parquet.
        SpecjaxError: a file that specjax has not written is in its place.
    """
    suffix = out.suffix.lower()
    known, what = (_WIDE, "vectors to ") if vectors else ((*SUFFIXES, *HDF5), "")
    if partitioned:
        known, what = (".parquet",), "partitions to "
    elif out.is_dir():
        raise DataError(f"cannot write {out}: it is a folder, such as --partitioned writes")
    if suffix not in known:
        raise DataError(f"cannot write {what}{out.name}: the suffix must be {_one_of(known)}")
    if suffix == ".parquet":
        require_pyarrow()
    if not partitioned:
        check_replaceable(out)


def _one_of(suffixes: Sequence[str]) -> str:
    return suffixes[0] if len(suffixes) == 1 else f"one of {', '.join(suffixes)}"


def write_output(
    out: Path,
    parts: Sequence[Path],
    *,
    wide: Collection[str] = (),
    shared: Mapping[str, AnyArray] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Columns:
    """Write the rows of all parts, atomically, and return their columns without the wide ones.

    HDF5 has one dataset per column and the metadata as attributes; Parquet has one row group per part, and
    wide columns as lists of fixed size. These two hold one part of the wide columns in memory, others all.
    .npz has one array per column, and the metadata as texts.

    Args:
        out: the suffix selects the format.
        parts: files of `parts.write_part`, each with at least one row.
        wide: names of columns (n, d, ...).
        shared: arrays (p,) that belong to all rows: one dataset of HDF5, one array of .npz, and a column
            that repeats them in every row of Parquet, which compresses it away, and FITS.
        meta: metadata of the file, kept if the format supports them.
    """
    shared = shared or {}
    narrow = [read_columns(path, but=wide) for path in parts]
    columns = {name: np.concatenate([part[name] for part in narrow]) for name in narrow[0]}
    if out.suffix.lower() in HDF5:
        _write_hdf5(out, columns, parts, wide, shared, meta or {})
    elif out.suffix.lower() == ".parquet" and wide:
        write_parquet(out, columns, parts, wide, meta or {}, shared)
    else:
        whole = {name: np.concatenate(list(_blocks(parts, name))) for name in wide}
        _write_whole(out, {**columns, **whole}, shared, meta or {})
    return columns


def _write_whole(
    out: Path, columns: Columns, shared: Mapping[str, AnyArray], meta: Mapping[str, Any]
) -> None:
    """Write columns that are in memory: .npz, or a table."""
    if out.suffix.lower() != ".npz":
        rows = len(columns["id"])
        repeated = {name: np.broadcast_to(each, (rows, *each.shape)) for name, each in shared.items()}
        write_table(out, {**columns, **repeated}, meta)
        return
    content: dict[str, Any] = {**{name: str(text) for name, text in meta.items()}, **columns, **shared}
    with atomic_file(out) as temporary:
        np.savez(temporary, **content)


def _blocks(parts: Sequence[Path], name: str) -> Iterator[AnyArray]:
    for path in parts:
        yield read_columns(path, [name])[name]


def _write_hdf5(
    out: Path,
    columns: Columns,
    parts: Sequence[Path],
    wide: Collection[str],
    shared: Mapping[str, AnyArray],
    meta: Mapping[str, Any],
) -> None:
    import h5py  # slow to import

    with atomic_file(out) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(meta)
        for name, column in columns.items():
            file[name] = for_hdf5(column)
            unit = None if column.dtype.kind == "U" else column_unit(name)
            about = {"unit": unit, "description": column_description(name), "ucd": column_ucd(name)}
            file[name].attrs.update({key: text for key, text in about.items() if text})
        for name, array in shared.items():
            file[name] = array
            file[name].attrs["unit"] = column_unit(name) or ""
        for name in wide:
            start, dataset = 0, None
            for block in _blocks(parts, name):
                if dataset is None:
                    shape = (len(columns["id"]), *block.shape[1:])
                    dataset = file.create_dataset(name, shape, block.dtype)
                dataset[start : start + len(block)] = block
                start += len(block)
