"""Columns of many surveys under one another; what one of them does not know is NaN or empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]


def stack(tables: Sequence[Columns]) -> dict[str, np.ndarray]:
    """One table of all rows, with the columns that any of them has.

    Args:
      tables: {name: (n_k,)} each, with at least one column.

    Returns:
      {name: (sum n_k,)}. A column is of text if it is so in any table; numbers become float64 where a table
      lacks them, and NaN there.
    """
    names = list(dict.fromkeys(name for table in tables for name in table))
    counts = [len(next(iter(table.values()))) for table in tables]
    return {name: _stacked([table.get(name) for table in tables], counts) for name in names}


def _stacked(columns: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray:
    given = [column for column in columns if column is not None]
    whole = len(given) == len(columns)
    if all(column.dtype.kind in "biuf" for column in given):
        if whole and len({column.dtype.kind for column in given}) == 1:
            return np.concatenate(given)
        return np.concatenate(
            [
                np.full(n, np.nan) if c is None else c.astype(np.float64)
                for c, n in zip(columns, counts, strict=True)
            ]
        )
    texts = [
        np.full(n, "", dtype=np.str_) if c is None else c.astype(np.str_)
        for c, n in zip(columns, counts, strict=True)
    ]
    return np.concatenate(texts)
