"""The stars that a user wants from a service: a table of ids or of positions, or a list of ids."""

from __future__ import annotations

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
from specjax.typing import FloatArray, StrArray

_TEXT = {".csv": "ascii.csv", ".txt": "ascii", ".dat": "ascii", ".tsv": "ascii.tab"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """n stars.

    Attributes:
      kind: the column that they are given by, or "sky".
      values: (n,) ids as text, no two the same; row numbers where kind is "sky".
      names: (n,) what the user calls them: the table's column id, else `values`.
      sky: (n, 2) right ascension and declination in degrees where kind is "sky", else None.
      aliases: (name, value) of the rows that repeat a value under another name.
    """

    kind: str
    values: StrArray
    names: StrArray
    sky: FloatArray | None = None
    aliases: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def digest(self) -> str:
        """Short text that differs for other stars, to tell whether a query changed."""
        content = "\n".join([self.kind, *self.values.tolist(), *self.names.tolist(), str(self.aliases)])
        if self.sky is not None:
            content += self.sky.tobytes().hex()
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_targets(path: str | Path, columns: Sequence[str], *, sky: bool) -> Targets:
    """The stars of a table by the first of `columns` that it has, or by its columns ra and dec.

    Args:
      path: any table that astropy reads, names of columns in any case, or a text file with an id a line.
      columns: names of columns with ids, in order of preference.
      sky: whether ra and dec will do where no such column is there.

    Raises:
      DataError: not a table, none of the columns, no rows, ids that are not whole numbers where they must be,
        or positions that are not on the sky.
    """
    path = Path(path)
    table = _table(path, (*columns, "id", "ra", "dec"))
    chosen = next((name for name in columns if name in table.colnames), None)
    if chosen is None and not (sky and {"ra", "dec"} <= set(table.colnames)):
        wanted = ", ".join(columns) + (", or ra and dec" if sky else "")
        raise DataError(f"{path} has none of the columns {wanted}: it has {', '.join(table.colnames)}")
    if not len(table):
        raise DataError(f"{path} has no rows")
    names = _texts(table["id"]) if "id" in table.colnames else None
    if chosen is None:
        rows = np.arange(len(table)).astype(np.str_)
        return Targets(kind="sky", values=rows, names=rows if names is None else names, sky=_sky(path, table))
    values = _texts(table[chosen])
    known = values != ""
    if not known.any():
        raise DataError(f"{path}: its column {chosen} is empty")
    names = values if names is None else names
    return from_ids(chosen, values[known], names[known], str(path))


def from_ids(
    kind: str, values: Sequence[str] | StrArray, names: Any = None, where: str = "the ids"
) -> Targets:
    """Stars by ids, each once; whole numbers unless `kind` is sparcl_id.

    Raises:
      DataError: an id that is not a whole number.
    """
    ids = np.array([str(value).strip() for value in values], dtype=np.str_)
    if kind != "sparcl_id":
        for value in ids.tolist():
            if not value.removeprefix("-").isdecimal() or abs(int(value)) >= 1 << 63:
                raise DataError(f"{where}: {kind} {value!r} is not a whole number of 64 bits")
    _, first = np.unique(ids, return_index=True)
    rows = np.sort(first)
    names = ids if names is None else np.asarray(names, dtype=np.str_)
    given = dict.fromkeys(zip(names.tolist(), ids.tolist(), strict=True))
    for row in rows.tolist():
        given.pop((str(names[row]), str(ids[row])))
    return Targets(kind=kind, values=ids[rows], names=names[rows], aliases=tuple(given))


def _table(path: Path, wanted: Sequence[str]) -> Table:
    """The wanted columns of a table, or all of a small one; names as in `wanted`, whatever their case."""
    if not path.is_file():
        raise ConfigError(f"there is no table at {path}")
    if is_fits(path):
        return _fits_table(path, wanted)
    if path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8", errors="replace").split()
        # A list without a heading: every word is an id.
        if lines and all(word.removeprefix("-").isdecimal() or word.count("-") == 4 for word in lines):
            return Table({wanted[0]: lines})
    options: dict[str, Any] = {}
    if form := _TEXT.get(path.suffix.lower()):
        texts = [name for name in wanted if name not in ("ra", "dec")]
        options = {"format": form, "converters": {n: str for t in texts for n in (t, t.upper())}}
    try:
        table = Table.read(path, **options)
    except Exception as error:  # astropy's readers raise whatever their parser does
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not a table that astropy reads: {line[0]}") from None
    for name, there in _matching(table.colnames, wanted).items():
        table.rename_column(there, name)
    return table


def _fits_table(path: Path, wanted: Sequence[str]) -> Table:
    """The wanted columns alone: APOGEE's allStar has hundreds, in 4 GB."""
    with open_fits(path, "a table", odd_cards=True, memmap=True) as hdus:
        data = next(hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)).data
        there = _matching(data.names, wanted)
        if not there:
            return Table(names=data.names)
        return Table({name: np.array(data[column]) for name, column in there.items()})


def _matching(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """{wanted: there} of the columns that are there, the exact name before one of another case."""
    by_case = {name.lower(): name for name in reversed(names)}
    exact = {name: name for name in wanted if name in names}
    return {name: by_case[name.lower()] for name in wanted if name.lower() in by_case} | exact


def _texts(column: Any) -> StrArray:
    """Texts of a column, masked ones empty; a float has lost the digits of an id and is refused."""
    if column.dtype.kind == "f":
        raise DataError(f"column {column.name} holds ids as floating-point numbers, which lose digits")
    masked = np.broadcast_to(np.asarray(getattr(column, "mask", False)), (len(column),))
    values = [item.decode() if isinstance(item, bytes) else str(item) for item in np.ma.getdata(column)]
    return np.where(masked, "", np.char.strip(np.array(values, dtype=np.str_)))


def _sky(path: Path, table: Table) -> FloatArray:
    try:
        places = np.stack(
            [np.ma.filled(np.ma.asarray(table[name], np.float64), np.nan) for name in ("ra", "dec")], axis=1
        )
    except (TypeError, ValueError):
        raise DataError(f"{path}: ra and dec are not numbers (degrees)") from None
    if not np.isfinite(places).all():
        raise DataError(f"{path}: {int((~np.isfinite(places)).any(axis=1).sum())} rows have no position")
    if (np.abs(places[:, 1]) > 90).any():
        raise DataError(f"{path}: declinations are beyond 90 degrees")
    places[:, 0] %= 360.0
    return places
