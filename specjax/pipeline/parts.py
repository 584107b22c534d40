"""The rows of one chunk in an .npz file, until all chunks are finished."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.npz import read_npz
from specjax.typing import AnyArray

Columns = dict[str, AnyArray]
"""Columns (n, ...) by name."""

_COLUMN = "column/"  # np.savez does not accept an array named "file"


def write_part(path: Path, columns: Columns, refused: Sequence[tuple[str, str]]) -> None:
    """Write columns, none if no spectrum was read, and (file, reason) of what is refused, atomically."""
    texts = np.array(refused, dtype=np.str_).reshape(-1, 2)
    content: dict[str, Any] = {_COLUMN + name: column for name, column in columns.items()}
    with atomic_file(path) as temporary:
        np.savez(temporary, refused=texts, **content)


def read_columns(path: Path, names: Collection[str] | None = None, *, but: Collection[str] = ()) -> Columns:
    """Read the columns of a part: those of `names`, or all `but` some; others are not loaded."""

    def wanted(key: str) -> bool:
        name = key.removeprefix(_COLUMN)
        return key.startswith(_COLUMN) and name not in but and (names is None or name in names)

    return {key.removeprefix(_COLUMN): array for key, array in read_npz(path, wanted).items()}


def read_refused(path: Path) -> list[tuple[str, str]]:
    """Read what was refused."""
    refused = read_npz(path, lambda name: name == "refused")["refused"]
    return [(name, reason) for name, reason in refused.tolist()]
