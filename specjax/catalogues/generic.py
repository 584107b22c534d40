"""Labels from any catalogue by column mapping: GALAH, one's own table, and whatever else has a row a star."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from specjax.catalogues.conditions import Condition
from specjax.errors import ConfigError, DataError
from specjax.surveys.io.duplicates import best_of_each
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.sniff import is_fits
from specjax.surveys.io.tables import floats, id_texts, read_table
from specjax.units import LABELS as UNITS

_WHAT = "a catalogue with a row for each star"
_TEXTS = ("id", "gaia_source_id")
_NUMBERS = ("ra", "dec", "snr")  # beside the labels and their errors


def parse_columns(text: str) -> dict[str, str]:
    """{"fe_h": "feh", "teff": "teff"} from "fe_h=feh,teff"; a name alone stands for itself.

    Raises:
      ConfigError: an empty name, or one given twice.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        ours, _, theirs = (word.strip() for word in part.partition("="))
        if not ours or ("=" in part and not theirs) or ours in columns:
            raise ConfigError(f"{text!r} does not say columns as 'fe_h=feh,teff=teff,ra=RAJ2000' does")
        columns[ours] = theirs or ours
    return columns


def read_labels(path: str | Path, *, columns: Mapping[str, str], where: Sequence[str] = ()) -> Table:
    """Labels of the stars that fulfil the conditions, one row a star.

    Args:
      path: FITS (only the columns that are needed are read), or any table that astropy reads.
      columns: {our name: the catalogue's}: labels such as fe_h and their errors fe_h_err; id, ra, dec, snr
        and gaia_source_id, which are looked for under these names where they are not given.
      where: conditions on the catalogue's own columns, see `conditions.Condition`; all must hold.

    Returns:
      Table with id (row number where there is none), ra, dec (degrees, NaN where absent), snr,
      gaia_source_id ("" where unknown), and the columns asked for. Of rows with the same id the one of the
      highest S/N is kept. Its meta counts what became of the rows: rows, left out by each condition (a row
      may fail several), without_labels, duplicates, kept.

    Raises:
      ConfigError: no label asked for, or a condition that is none.
      DataError: not a table, a column is missing or holds no numbers, or no row is left.
    """
    path = Path(path)
    conditions = [Condition.parse(text) for text in where]
    labels = [name for name in columns if name not in (*_TEXTS, *_NUMBERS) and not name.endswith("_err")]
    if not labels:
        raise ConfigError("columns must name at least one label, such as fe_h=FE_H")
    wanted = {**{name: name for name in (*_TEXTS, *_NUMBERS)}, **columns}
    needed = [*columns.values(), *(condition.column for condition in conditions)]
    given = _columns(path, needed, [*wanted.values()])
    count = len(next(iter(given.values())))
    keep, meta = np.ones(count, dtype=bool), {"rows": count}
    for condition in conditions:
        held = condition.holds(given[condition.column])
        meta[condition.text] = int((~held).sum())
        keep &= held
    table = _table(path, given, wanted, count)
    known = np.logical_or.reduce([np.isfinite(table[name]) for name in labels])
    meta["without_labels"] = int((keep & ~known).sum())
    rows = np.flatnonzero(keep & known)
    best = best_of_each(np.asarray(table["id"])[rows], np.asarray(table["snr"])[rows])
    meta |= {"duplicates": len(rows) - len(best), "kept": len(best)}
    if not len(best):
        raise DataError(f"{path}: none of {count} rows has a label and fulfils {', '.join(where) or 'that'}")
    table = table[rows[best]]
    table.meta.clear()
    table.meta.update(meta)
    return table


def _columns(path: Path, needed: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """The catalogue's columns by its own names: those needed, and those wanted that it has."""
    if not path.is_file():
        raise DataError(f"there is no catalogue at {path}")
    if not is_fits(path):
        table = read_table(path, texts=wanted[: len(_TEXTS)])
        _check(path, needed, table.colnames)
        return {name: table[name] for name in dict.fromkeys((*needed, *wanted)) if name in table.colnames}
    with open_fits(path, _WHAT, odd_cards=True, memmap=True) as hdus:
        data = next((hdu.data for hdu in hdus if hasattr(hdu, "columns")), None)
        if data is None:
            raise DataError(f"{path} is not {_WHAT}: it holds no table")
        _check(path, needed, data.names)
        return {
            name: np.array(data[name]) for name in dict.fromkeys((*needed, *wanted)) if name in data.names
        }


def _check(path: Path, needed: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in dict.fromkeys(needed) if name not in names]
    if missing:
        some = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise DataError(f"{path} has no column {', '.join(missing)}: it has {some}")


def _table(path: Path, given: Mapping[str, Any], wanted: Mapping[str, str], count: int) -> Table:
    """Our columns, all rows."""
    table = Table()
    for ours, theirs in wanted.items():
        if ours in _TEXTS:
            values = _names(ours, given.get(theirs), count)
        elif theirs in given:
            values = floats(given[theirs], f"{path}: column {theirs}")
        else:
            values = np.full(count, np.nan)
        table[ours] = values
        unit = next((unit for name, unit in UNITS.items() if ours in (name, f"{name}_err")), None)
        if unit:
            table[ours].unit = unit
    table["ra"].unit = table["dec"].unit = "deg"
    return table


def _names(ours: str, column: Any, count: int) -> np.ndarray:
    """Ids as text: the row's number for a star without one; "" for a Gaia source that is not known."""
    names = np.full(count, "", dtype="<U20") if column is None else id_texts(column)
    if ours == "id":
        return np.where(names == "", np.char.add("row ", np.arange(count).astype(np.str_)), names)
    return np.where(np.isin(names, ("0", "-1", "-9999", "nan")), "", names)  # as catalogues write it
