"""Prepared spectra of one chunk, and the .npz files that hold them until all chunks are finished."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.npz import read_npz
from specjax.typing import AnyArray, StrArray


@dataclass(kw_only=True)
class Part:
    """Prepared spectra of one chunk.

    Attributes:
        sides: {"lamost": arrays, "gaia_xp": arrays}, each with flux and ivar (float32) and mask; the second
            only if the options ask for it.
        id: (n,).
        meta: {"lamost": columns, "gaia_xp": columns}.
        refused: (file, reason) of everything that could not be prepared.
        without_ivar: number of spectra without uncertainties.
        surveys: where the spectra come from.
        prepared: options of the preprocessing, as in `Spectra.prepared`.
    """

    sides: dict[str, dict[str, AnyArray]] = field(default_factory=dict)
    id: StrArray = field(default_factory=lambda: np.zeros(0, dtype="<U1"))
    meta: dict[str, dict[str, AnyArray]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    without_ivar: int = 0
    surveys: list[str] = field(default_factory=list)
    prepared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)


def write_part(path: Path, part: Part) -> None:
    """Write a part as an .npz file, atomically."""
    content: dict[str, Any] = {
        f"{side}/{name}": array for side, arrays in part.sides.items() for name, array in arrays.items()
    }
    content |= {
        f"meta/{side}/{name}": column
        for side, columns in part.meta.items()
        for name, column in columns.items()
    }
    with atomic_file(path) as temporary:
        np.savez(
            temporary,
            id=part.id,
            refused=np.array(part.refused, dtype=np.str_).reshape(-1, 2),
            bare=part.without_ivar,
            surveys=np.array(part.surveys, dtype=np.str_),
            prepared=json.dumps(part.prepared),
            **content,
        )


def read_part(path: Path, *, pixels: bool = True) -> Part:
    """Read a file of `write_part`; without `pixels`, the sides are empty.

    Raises:
        OSError, ValueError, KeyError: the file is damaged.
    """
    part = Part()
    file = read_npz(path, lambda key: pixels or key.startswith("meta/") or "/" not in key)
    part.id, part.without_ivar = file["id"], int(file["bare"])
    part.surveys, part.prepared = file["surveys"].tolist(), json.loads(str(file["prepared"]))
    part.refused = [(name, reason) for name, reason in file["refused"].tolist()]
    for key, array in file.items():
        first, _, rest = key.partition("/")
        if first == "meta":
            side, _, name = rest.partition("/")
            part.meta.setdefault(side, {})[name] = array
            part.sides.setdefault(side, {})
            part.sides.setdefault(side, {})
        elif rest:
            part.sides.setdefault(first, {})[rest] = array
    return part


def stack_columns(tables: Sequence[Mapping[str, AnyArray]]) -> dict[str, AnyArray]:
    """Stack tables, keeping the columns that any of them has.

    Args:
        tables: {name: (n_k,)} each, with at least one column.

    Returns:
        {name: (sum n_k,)}. A column is text if it is text in any table. Where a table lacks a column, text is
        empty, and numbers become float64 with NaN.
    """
    names = list(dict.fromkeys(name for table in tables for name in table))
    counts = [len(next(iter(table.values()))) for table in tables]
    return {name: _stacked([table.get(name) for table in tables], counts) for name in names}


def _stacked(columns: Sequence[AnyArray | None], counts: Sequence[int]) -> AnyArray:
    given = [column for column in columns if column is not None]
    numbers = all(column.dtype.kind in "biuf" for column in given)
    if numbers and len(given) == len(columns) and len({column.dtype.kind for column in given}) == 1:
        return np.concatenate(given)
    missing, kind = (np.nan, np.float64) if numbers else ("", np.str_)
    return np.concatenate(
        [
            np.full(count, missing) if column is None else column.astype(kind)
            for column, count in zip(columns, counts, strict=True)
        ]
    )
