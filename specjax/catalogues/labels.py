"""Tables of stellar labels: reading them, and joining them to spectra on `id`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.table import Column, Table

from specjax.catalogues.label_units import to_own_unit
from specjax.errors import DataError
from specjax.plurals import counted
from specjax.surveys.io.tables import floats, id_texts, read_table
from specjax.typing import FloatArray, StrArray
from specjax.units import label_unit


def read_labels(path: str | Path, columns: Sequence[str] | None = None, *, id_column: str = "id") -> Table:
    """Read a table of labels, one row per star.

    Args:
        path: .csv, .ecsv, .fits, .vot, .parquet or any other format that astropy reads.
        columns: the label columns to read; all numeric columns if None.
        id_column: the name of the column with the ids.

    Returns:
        Table with a column id of strings and the labels as floats, NaN where masked or missing. A label whose
        column has a unit, such as kK, is converted to that of `specjax.units`.

    Raises:
        DataError: the file is not a table, a column is missing, a label is not a number or in a unit
            that cannot be converted, or ids are empty or not unique.
    """
    table = read_table(path, texts=[id_column])
    wanted = [name for name in table.colnames if _numeric(table[name])] if columns is None else list(columns)
    missing = [name for name in (id_column, *wanted) if name not in table.colnames]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}: it has {', '.join(table.colnames)}")
    ids = id_texts(table[id_column])
    if (ids == "").any():
        raise DataError(f"{path}: {counted(int((ids == '').sum()), 'row')} without {id_column}")
    if len(repeated := _repeated(ids)):
        raise DataError(f"{path}: {_some(repeated)} {'occur' if len(repeated) > 1 else 'occurs'} twice")
    result = Table({"id": ids})
    for name in wanted:
        if name != id_column:
            what, unit = f"{path}: column {name}", table[name].unit
            result[name] = to_own_unit(name, floats(table[name], what), unit, what)
            result[name].unit = unit and (label_unit(name) or unit)
    return result


def join_labels(
    ids: Sequence[str] | StrArray, table: Table, columns: Sequence[str], *, partial: bool = True
) -> dict[str, FloatArray]:
    """Return the label columns in the order of the spectra's ids.

    Args:
        ids: (n,) ids of the spectra.
        table: a table as returned by `read_labels`.
        columns: names of label columns.
        partial: whether spectra without a row are allowed; their labels are NaN.

    Returns:
        {column: (n,) float64}.

    Raises:
        DataError: ids of spectra are not unique, no id is in the table, or, unless `partial`, some are not.
    """
    names = np.asarray(ids, dtype=np.str_)
    if len(repeated := _repeated(names)):
        raise DataError(f"spectra cannot be joined on ids that are not unique: {_some(repeated)}")
    row_of = {name: row for row, name in enumerate(table["id"].tolist())}
    rows = np.array([row_of.get(name, -1) for name in names.tolist()], dtype=int)
    absent = names[rows < 0]
    if len(rows) and len(absent) == len(rows):
        raise DataError(
            f"no spectrum's id is in the label table: spectra have {_some(names)}, "
            f"the table has {_some(np.asarray(table['id']))}"
        )
    if absent.size and not partial:
        number = counted(absent.size, "spectrum", "spectra")
        raise DataError(f"no row in the label table for {number}: {_some(absent)}")
    return {
        name: np.where(rows < 0, np.nan, np.asarray(table[name], dtype=np.float64)[rows]) for name in columns
    }


def _numeric(column: Column) -> bool:
    return column.dtype.kind in "iuf" and column.ndim == 1


def _repeated(names: StrArray) -> StrArray:
    unique, count = np.unique(names, return_counts=True)
    return unique[count > 1]


def _some(names: StrArray) -> str:
    """Return the first three names, for a message."""
    shown = ", ".join(str(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
