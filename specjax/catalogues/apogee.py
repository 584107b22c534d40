"""Read Teff, log g, [Fe/H] and [alpha/M] from the catalogue allStar of APOGEE DR17, with quality cuts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table

from specjax import units
from specjax.errors import ConfigError, DataError
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.snr import best_of_each
from specjax.typing import AnyArray, BoolArray

_WHAT = "an APOGEE allStar catalogue"

LABELS = {"teff": "TEFF", "logg": "LOGG", "fe_h": "FE_H", "alpha_m": "ALPHA_M"}
"""The catalogue's columns of the labels; their errors are in NAME_ERR."""

M_H_BAD, STAR_BAD = 1 << 19, 1 << 23
"""Bits of ASPCAPFLAG: metallicity at or near a grid edge, and any reason to reject the star."""

CUTS: dict[str, Callable[[Mapping[str, AnyArray]], BoolArray]] = {
    "starflag": lambda row: row["STARFLAG"] == 0,
    "m_h": lambda row: (row["ASPCAPFLAG"] & M_H_BAD) == 0,
    "star": lambda row: (row["ASPCAPFLAG"] & STAR_BAD) == 0,
    "snr": lambda row: row["SNR"] > 50,
}
"""The quality cuts: each returns which rows to keep."""

_IDS = ("APOGEE_ID", "RA", "DEC")
_NEEDED = {"starflag": "STARFLAG", "m_h": "ASPCAPFLAG", "star": "ASPCAPFLAG", "snr": "SNR"}
_GAIA_ID = "GAIAEDR3_SOURCE_ID"  # optional
_MISSING = -9000  # numbers below mean that the value is missing (-9999)


def read_labels(
    path: str | Path, *, cuts: Sequence[str] = tuple(CUTS), labels: Sequence[str] = ("teff", "logg", "fe_h")
) -> Table:
    """Read the labels of the stars that pass the cuts, one row per star.

    Only the required columns are read. Of several rows for one star, observed in several fields, the one of
    the highest S/N is kept.

    Args:
        path: allStar-dr17-synspec_rev1.fits, or a part of it with the same column names.
        cuts: names from `CUTS`, all by default; () keeps every row.
        labels: names from `LABELS`; rows without any of them are left out.

    Returns:
        Table with id (APOGEE_ID), ra, dec (degrees), snr, gaia_source_id (text, "" if missing), and each
        label with its error (LABEL_err). Its meta has numbers of rows: rows, those rejected by each cut
        (cut_NAME; a row may fail several), without_labels, duplicates, kept.

    Raises:
        ConfigError: an unknown cut or label.
        DataError: the file is not such a catalogue, lacks a column, or has no row that passes.
    """
    _check_names("cut", cuts, CUTS)
    _check_names("label", labels, LABELS)
    row = _columns(Path(path), cuts, labels)
    count = len(row["APOGEE_ID"])
    meta = {"rows": count}
    keep = np.ones(count, dtype=bool)
    for name in cuts:
        passed = CUTS[name](row)
        meta[f"cut_{name}"] = int((~passed).sum())
        keep &= passed
    labelled = np.logical_or.reduce([np.isfinite(row[LABELS[name]]) for name in labels])
    meta["without_labels"] = int((keep & ~labelled).sum())
    rows = np.flatnonzero(keep & labelled)
    best = best_of_each(row["APOGEE_ID"][rows], row["SNR"][rows])
    meta |= {"duplicates": len(rows) - len(best), "kept": len(best)}
    if not len(best):
        raise DataError(f"{path}: none of {count} rows passes the cuts {', '.join(cuts) or '(none)'}")
    return _table({name: values[rows[best]] for name, values in row.items()}, labels, meta)


def _check_names(kind: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"unknown APOGEE {kind} {unknown[0]!r}; known are {', '.join(known)}")


def _columns(path: Path, cuts: Sequence[str], labels: Sequence[str]) -> dict[str, AnyArray]:
    """Read the columns in native types, missing numbers as NaN."""
    errors = [f"{LABELS[name]}_ERR" for name in labels]
    needed = list(dict.fromkeys([*_IDS, "SNR", *(LABELS[n] for n in labels), *(_NEEDED[n] for n in cuts)]))
    with open_fits(path, _WHAT, odd_cards=True, memmap=True) as hdus:
        data = hdus[1].data if len(hdus) > 1 and hasattr(hdus[1], "columns") else None
        if data is None:
            raise DataError(f"{path} is not {_WHAT}: HDU 1 is not a table")
        missing = [name for name in needed if name not in data.names]
        if missing:
            raise DataError(f"{path} is not {_WHAT}: it has no column {', '.join(missing)}")
        optional = [name for name in (*errors, _GAIA_ID) if name in data.names]
        columns = {name: np.array(data[name]) for name in (*needed, *optional)}
    return {name: _native(name, values) for name, values in columns.items()}


def _native(name: str, values: AnyArray) -> AnyArray:
    if name == "APOGEE_ID":
        return np.char.strip(values.astype(np.str_))
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        return np.where(values < _MISSING, np.nan, values)
    return values.astype(np.int64)


def _table(row: Mapping[str, AnyArray], labels: Sequence[str], meta: Mapping[str, int]) -> Table:
    count = len(row["APOGEE_ID"])
    table = Table(
        {"id": row["APOGEE_ID"], "ra": row["RA"], "dec": row["DEC"], "snr": row["SNR"]}, meta=dict(meta)
    )
    source = row.get(_GAIA_ID, np.zeros(count, dtype=np.int64))
    table["gaia_source_id"] = np.where(source > 0, source.astype(np.str_), "")
    for name in labels:
        table[name] = row[LABELS[name]]
        table[f"{name}_err"] = row.get(f"{LABELS[name]}_ERR", np.full(count, np.nan))
        for column in (name, f"{name}_err"):
            table[column].unit = units.LABELS.get(name, "dex")
    for column in ("ra", "dec"):
        table[column].unit = units.COLUMNS[column]
    return table
