"""Parquet with units in the schema, as astropy writes it: one file, or a folder of partitions."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from astropy.table import Table

from specjax.atomic import atomic_file, atomic_folder, check_folder
from specjax.pipeline.parts import Columns, read_columns
from specjax.typing import AnyArray
from specjax.units import column_description, column_ucd, column_unit

_PARTITION = 128 << 20  # bytes of parts in one partition: a size that Dask and Spark advise
_NAME = re.compile(r"part-\d{5,}\.parquet")


def write_parquet(
    out: Path,
    columns: Columns,
    parts: Sequence[Path],
    wide: Collection[str],
    meta: Mapping[str, Any],
    shared: Mapping[str, AnyArray] = MappingProxyType({}),
) -> None:
    """Write all parts as one file with a row group per part, atomically.

    Args:
        out: the file.
        columns: columns (n,) of all parts; others are read part by part.
        parts: files of `parts.write_part`, each with at least one row.
        wide: names of columns (n, d, ...), written as lists of fixed size.
        meta: metadata of the file.
        shared: arrays (p,) that every row repeats.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = _schema(columns, _wide_blocks(parts[0], wide, shared), meta, _text_lengths(columns))
    start = 0
    with atomic_file(out) as temporary, ParquetWriter(temporary, schema) as writer:
        for path in parts:
            blocks = _wide_blocks(path, wide, shared)
            stop = start + len(next(iter(blocks.values())))
            narrow = {name: column[start:stop] for name, column in columns.items()}
            writer.write_table(pyarrow.Table.from_arrays(_arrow(narrow, blocks), schema=schema))
            start = stop


def check_dataset(out: Path) -> None:
    """Check that `write_dataset` may write a folder, before work that would be lost; create its parents.

    Raises:
        SpecjaxError: the folder holds anything but partitions; it is left unchanged.
    """
    check_folder(out, known=_partitions(out))


def write_dataset(
    out: Path,
    parts: Sequence[Path],
    wide: Collection[str],
    meta: Mapping[str, Any],
    shared: Mapping[str, AnyArray] = MappingProxyType({}),
) -> Counter[str]:
    """Write all parts as a folder of files part-00000.parquet, ... in their order, atomically.

    All files have the same schema. One partition is in memory at a time; it holds about 128 MB of parts, and
    whole parts.

    Args:
        out: the folder; earlier partitions in it are replaced.
        parts: files of `parts.write_part`, each with at least one row.
        wide: names of columns (n, d, ...), written as lists of fixed size.
        meta: metadata of every file.
        shared: arrays (p,) that every row repeats.

    Returns:
        The number of rows by their flag.

    Raises:
        SpecjaxError: the folder holds anything but partitions; it is left unchanged.
    """
    import pyarrow
    from pyarrow.parquet import write_table

    flags: Counter[str] = Counter()
    narrow = read_columns(parts[0], but=wide)
    texts = list(_text_lengths(narrow))
    lengths = [_text_lengths(read_columns(path, texts)) for path in parts]
    longest = {name: max(length[name] for length in lengths) for name in texts}
    schema = _schema(narrow, _wide_blocks(parts[0], wide, shared), meta, longest)
    with atomic_folder(out, known=_partitions(out)) as temporary:
        for number, group in enumerate(_groups(parts)):
            tables = []
            for path in group:
                narrow = read_columns(path, but=wide)
                flags.update(narrow["flag"].tolist())
                arrays = _arrow(narrow, _wide_blocks(path, wide, shared))
                tables.append(pyarrow.Table.from_arrays(arrays, schema=schema))
            write_table(pyarrow.concat_tables(tables), temporary / f"part-{number:05d}.parquet")
    return flags


def _wide_blocks(path: Path, wide: Collection[str], shared: Mapping[str, AnyArray]) -> Columns:
    """Return the wide columns of a part, and those that repeat a shared array."""
    blocks = read_columns(path, wide)
    rows = len(next(iter(blocks.values()), ()))
    return blocks | {name: np.broadcast_to(each, (rows, *each.shape)) for name, each in shared.items()}


def _partitions(out: Path) -> list[str]:
    """Return the names of the partitions in a folder, which need not exist."""
    return [path.name for path in out.glob("part-*.parquet") if _NAME.fullmatch(path.name)]


def _groups(parts: Sequence[Path]) -> Iterator[list[Path]]:
    """Group parts by the partition that they belong to."""
    group: list[Path] = []
    size = 0
    for path in parts:
        bytes_of_part = path.stat().st_size
        if group and size + bytes_of_part > _PARTITION:
            yield group
            group, size = [], 0
        group.append(path)
        size += bytes_of_part
    yield group


def _text_lengths(columns: Columns) -> dict[str, int]:
    """Return the number of characters that each column of texts has room for."""
    texts = {name: column for name, column in columns.items() if column.dtype.kind == "U"}
    return {name: max(column.dtype.itemsize // 4, 1) for name, column in texts.items()}


def _schema(narrow: Columns, wide: Columns, meta: Mapping[str, Any], lengths: Mapping[str, int]) -> Any:
    """Return the schema of columns (n,) and (n, d, ...), with what astropy notes in it.

    These are units and metadata, and the lengths of texts.
    """
    import pyarrow
    from astropy.table.meta import get_yaml_from_table

    flat = {name: block.reshape(len(block), -1)[:1] for name, block in wide.items()}
    header = Table({**{name: column[:1] for name, column in narrow.items()}, **flat}, meta=dict(meta))
    for name, column in narrow.items():
        if column.dtype.kind == "f" and (unit := column_unit(name)):
            header[name].unit = unit
        header[name].description = column_description(name)
        if ucd := column_ucd(name):
            header[name].meta["ucd"] = ucd
    for name in flat:
        header[name].unit = column_unit(name)
    shapes = {name: list(block.shape[1:]) for name, block in wide.items() if block.ndim > 2}
    header.meta.update({f"{name}_shape": json.dumps(shape) for name, shape in shapes.items()})
    fields = [(name, pyarrow.from_numpy_dtype(column.dtype.type)) for name, column in narrow.items()]
    for name, block in flat.items():
        fields.append((name, pyarrow.list_(pyarrow.from_numpy_dtype(block.dtype), block.shape[1])))
    notes = {f"table::len::{name}": str(length) for name, length in lengths.items()}
    notes["table_meta_yaml"] = "\n".join(get_yaml_from_table(header))
    return pyarrow.schema(fields, metadata=notes)


def _arrow(narrow: Columns, wide: Columns) -> list[Any]:
    """Return columns (n,) and (n, d, ...) as Arrow's arrays, the latter as lists of fixed size."""
    import pyarrow

    lists = [
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.ravel(block)), block[0].size)
        for block in wide.values()
    ]
    return [*map(pyarrow.array, narrow.values()), *lists]
