"""Read labels from any catalogue with one row per star by mapping its columns, for example GALAH's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table
from astropy.units import Unit

from specjax import units
from specjax.catalogues.conditions import Condition
from specjax.catalogues.label_units import to_own_unit
from specjax.errors import ConfigError, DataError
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.sniff import is_fits
from specjax.surveys.io.snr import best_of_each
from specjax.surveys.io.tables import floats, id_texts, read_table
from specjax.typing import StrArray

_WHAT = "a catalogue with one row per star"
_IDS = ("id", "gaia_source_id")
_NUMBERS = ("ra", "dec", "snr")  # besides the labels and their errors
_UNKNOWN_IDS = ("0", "-1", "-9999", "nan")  # how catalogues write an unknown Gaia source
_SHOWN = 12  # names of columns in a message


def parse_columns(text: str) -> dict[str, str]:
    """Parse a mapping of columns; a name alone maps to itself.

    >>> parse_columns("fe_h=feh,teff")
    {'fe_h': 'feh', 'teff': 'teff'}

    Raises:
        ConfigError: a name is empty or given twice.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        ours, _, theirs = (word.strip() for word in part.partition("="))
        if not ours or ("=" in part and not theirs) or ours in columns:
            raise ConfigError(f"{text!r} is not a mapping of columns such as 'fe_h=feh,teff=teff,ra=RAJ2000'")
        columns[ours] = theirs or ours
    return columns


def read_labels(path: str | Path, *, columns: Mapping[str, str], where: Sequence[str] = ()) -> Table:
    """Read the labels of the stars that fulfil the conditions, one row per star.

    Of several rows with the same id, the one of the highest S/N is kept.

    Args:
        path: FITS, of which only the required columns are read, or any table that astropy reads.
        columns: {our name: the catalogue's} of labels such as fe_h, their errors such as fe_h_err, and of id,
            ra, dec, snr and gaia_source_id, which are looked up under these names by default.
        where: conditions on the catalogue's own columns, see `conditions.Condition`; all must hold.

    Returns:
        Table with id (the row number where it is missing), ra, dec (degrees, NaN where missing), snr,
        gaia_source_id ("" where unknown), and the mapped columns. Its meta has numbers of rows: rows, those
        rejected by each condition (a row may fail several), without_labels, duplicates, kept.

    Raises:
        ConfigError: no label is mapped, or a condition is invalid.
        DataError: the file is not a table, a column is missing or not numerical, or no row is left.
    """
    path = Path(path)
    conditions = [Condition.parse(text) for text in where]
    labels = [name for name in columns if name not in (*_IDS, *_NUMBERS) and not name.endswith("_err")]
    if not labels:
        raise ConfigError("columns must name at least one label, such as fe_h=FE_H")
    wanted = {**{name: name for name in (*_IDS, *_NUMBERS)}, **columns}
    needed = [*columns.values(), *(condition.column for condition in conditions)]
    given = _columns(path, needed, [*wanted.values()])
    count = len(next(iter(given.values())))
    keep, meta = np.ones(count, dtype=bool), {"rows": count}
    for condition in conditions:
        fulfilled = condition.holds(given[condition.column])
        meta[condition.text] = int((~fulfilled).sum())
        keep &= fulfilled
    table = _table(path, given, wanted, count)
    labelled = np.logical_or.reduce([np.isfinite(table[name]) for name in labels])
    meta["without_labels"] = int((keep & ~labelled).sum())
    rows = np.flatnonzero(keep & labelled)
    best = best_of_each(np.asarray(table["id"])[rows], np.asarray(table["snr"])[rows])
    meta |= {"duplicates": len(rows) - len(best), "kept": len(best)}
    if not len(best):
        conditions_text = f" and fulfils {', '.join(where)}" if where else ""
        raise DataError(f"{path}: none of {count} rows has a label{conditions_text}")
    table = table[rows[best]]
    table.meta.clear()
    table.meta.update(meta)
    return table


def _columns(path: Path, needed: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Read the columns, by the catalogue's names: those needed, and those wanted that it has."""
    if not path.is_file():
        raise DataError(f"there is no catalogue at {path}")
    names = list(dict.fromkeys((*needed, *wanted)))
    if not is_fits(path):
        table = read_table(path, texts=wanted[: len(_IDS)])
        _check(path, needed, table.colnames)
        return {name: table[name] for name in names if name in table.colnames}
    with open_fits(path, _WHAT, odd_cards=True, memmap=True) as hdus:
        data = next((hdu.data for hdu in hdus if hasattr(hdu, "columns")), None)
        if data is None:
            raise DataError(f"{path} is not {_WHAT}: it has no table")
        _check(path, needed, data.names)
        units_of = dict(zip(data.columns.names, data.columns.units, strict=True))
        return {
            name: Column(np.array(data[name]), unit=_unit(units_of[name]))
            for name in names
            if name in data.names
        }


def _unit(text: str | None) -> Unit | None:
    """Return the unit of a column of FITS, which may be one that astropy does not know."""
    return Unit(text, parse_strict="silent") if text else None


def _check(path: Path, needed: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in dict.fromkeys(needed) if name not in names]
    if missing:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise DataError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(names[:_SHOWN])}{more}"
        )


def _table(path: Path, given: Mapping[str, Any], wanted: Mapping[str, str], count: int) -> Table:
    """Make the table of all rows under our column names."""
    table = Table()
    for ours, theirs in wanted.items():
        if ours in _IDS:
            table[ours] = _ids(ours, given.get(theirs), count)
            continue
        values, what = np.full(count, np.nan), f"{path}: column {theirs}"
        if theirs in given:
            unit = getattr(given[theirs], "unit", None)
            values = to_own_unit(ours, floats(given[theirs], what), unit, what)
        table[ours] = values
        table[ours].unit = units.COLUMNS.get(ours) or units.label_unit(ours)
    return table


def _ids(ours: str, column: Any, count: int) -> StrArray:
    """Return ids as text: the row number where an id is missing, "" for an unknown Gaia source."""
    names = np.full(count, "", dtype="<U20") if column is None else id_texts(column)
    if ours == "id":
        return np.where(names == "", np.char.add("row ", np.arange(count).astype(np.str_)), names)
    return np.where(np.isin(names, _UNKNOWN_IDS), "", names)
