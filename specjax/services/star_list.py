"""Read the list of stars that a user wants from a service: ids or positions in a table, or a list of ids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from specjax.errors import ConfigError, DataError
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.sniff import is_fits
from specjax.surveys.io.tables import id_texts, read_table
from specjax.typing import FloatArray, StrArray


@dataclass(frozen=True, kw_only=True, eq=False)
class StarList:
    """n stars by id or by position.

    Attributes:
        kind: the column that identifies them, or "sky".
        values: (n,) distinct ids as text; row numbers where kind is "sky".
        names: (n,) the user's names: the table's column id, else `values`.
        sky: (n, 2) right ascension and declination in degrees where kind is "sky", else None.
        aliases: (name, value) of rows that repeat a value under another name.
    """

    kind: str
    values: StrArray
    names: StrArray
    sky: FloatArray | None = None
    aliases: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def digest(self) -> str:
        """Return a short hash of the list, by which a resumed query recognises a changed one."""
        content = "\n".join([self.kind, *self.values.tolist(), *self.names.tolist(), str(self.aliases)])
        if self.sky is not None:
            content += self.sky.tobytes().hex()
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_star_list(path: str | Path, columns: Sequence[str], *, sky: bool) -> StarList:
    """Read the stars of a table from the first of `columns` that it has, or from its columns ra and dec.

    Args:
        path: any table that astropy reads, with column names in any case, or a text file with one id per
            line.
        columns: names of columns with ids, in order of preference.
        sky: whether ra and dec are accepted if the table has none of the columns.

    Raises:
        ConfigError: there is no such file.
        DataError: not a table, none of the columns, no rows, ids that are not whole numbers where they must
            be, or positions that are not on the sky.
    """
    path = Path(path)
    table = _read(path, (*columns, "id", "ra", "dec"))
    column = next((name for name in columns if name in table.colnames), None)
    if column is None and not (sky and {"ra", "dec"} <= set(table.colnames)):
        wanted = ", ".join(columns) + (", or ra and dec" if sky else "")
        raise DataError(f"{path} has none of the columns {wanted}; it has {', '.join(table.colnames)}")
    if not len(table):
        raise DataError(f"{path} has no rows")
    names = _ids(table["id"]) if "id" in table.colnames else None
    if column is None:
        rows = np.arange(len(table)).astype(np.str_)
        positions = _positions(path, table)
        return StarList(kind="sky", values=rows, names=rows if names is None else names, sky=positions)
    values = _ids(table[column])
    given = values != ""
    if not given.any():
        raise DataError(f"{path}: column {column} is empty")
    names = values if names is None else names
    return from_ids(column, values[given], names[given], str(path))


def from_ids(
    kind: str,
    values: Sequence[str] | StrArray,
    names: Sequence[str] | StrArray | None = None,
    where: str = "the ids",
) -> StarList:
    """Make a list of distinct stars from ids, which must be whole numbers unless `kind` is sparcl_id.

    Args:
        kind: the column that the ids belong to.
        values: (n,) ids, which may repeat.
        names: (n,) the user's names; the ids by default.
        where: where the ids come from, for error messages.

    Raises:
        DataError: an id is not a whole number.
    """
    ids = np.array([str(value).strip() for value in values], dtype=np.str_)
    if kind != "sparcl_id":
        for value in ids.tolist():
            if not value.removeprefix("-").isdecimal() or abs(int(value)) >= 1 << 63:
                raise DataError(f"{where}: {kind} {value!r} is not a whole number of 64 bits")
    _, first = np.unique(ids, return_index=True)
    rows = np.sort(first)
    user_names = ids if names is None else np.asarray(names, dtype=np.str_)
    pairs = dict.fromkeys(zip(user_names.tolist(), ids.tolist(), strict=True))
    for row in rows.tolist():
        pairs.pop((str(user_names[row]), str(ids[row])))
    return StarList(kind=kind, values=ids[rows], names=user_names[rows], aliases=tuple(pairs))


def _read(path: Path, wanted: Sequence[str]) -> Table:
    """Read the wanted columns of a FITS table, or any other whole, under the names in `wanted`."""
    if not path.is_file():
        raise ConfigError(f"there is no table at {path}")
    if is_fits(path):
        return _read_fits(path, wanted)
    if path.suffix.lower() == ".txt":
        words = path.read_text(encoding="utf-8", errors="replace").split()
        # A list without a heading: every word is a number or a UUID.
        if words and all(word.removeprefix("-").isdecimal() or word.count("-") == 4 for word in words):
            return Table({wanted[0]: words})
    texts = [name for name in wanted if name not in ("ra", "dec")]
    table = read_table(path, texts=[*texts, *(name.upper() for name in texts)])
    for name, found in _in_any_case(table.colnames, wanted).items():
        table.rename_column(found, name)
    return table


def _read_fits(path: Path, wanted: Sequence[str]) -> Table:
    """Read the wanted columns only: APOGEE's allStar has hundreds, in 4 GB."""
    with open_fits(path, "a table", odd_cards=True, memmap=True) as hdus:
        data = next(hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)).data
        found = _in_any_case(data.names, wanted)
        if not found:
            return Table(names=data.names)
        return Table({name: np.array(data[column]) for name, column in found.items()})


def _in_any_case(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return {wanted name: column name} of the columns present, preferring the exact name to another case."""
    by_case = {name.lower(): name for name in reversed(names)}
    exact = {name: name for name in wanted if name in names}
    return {name: by_case[name.lower()] for name in wanted if name.lower() in by_case} | exact


def _ids(column: Any) -> StrArray:
    """Return ids as text, masked ones empty; floating-point numbers have lost digits and are refused."""
    if column.dtype.kind == "f":
        raise DataError(f"column {column.name} holds ids as floating-point numbers, which lose digits")
    return id_texts(column)


def _positions(path: Path, table: Table) -> FloatArray:
    """Return (n, 2) ra and dec, with ra in [0, 360)."""
    try:
        positions: FloatArray = np.stack(
            [np.ma.filled(np.ma.asarray(table[name], np.float64), np.nan) for name in ("ra", "dec")], axis=1
        )
    except (TypeError, ValueError):
        raise DataError(f"{path}: ra and dec are not numbers in degrees") from None
    unknown = ~np.isfinite(positions).all(axis=1)
    if unknown.any():
        raise DataError(f"{path}: {int(unknown.sum())} rows have no position")
    if (np.abs(positions[:, 1]) > 90).any():
        raise DataError(f"{path}: declinations exceed 90 degrees")
    positions[:, 0] %= 360.0
    return positions
