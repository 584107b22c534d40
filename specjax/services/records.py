"""Check records of SPARCL, and write the table of those that were found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, Table

from specjax.errors import DataError
from specjax.progress import Say
from specjax.services.pages import Record
from specjax.spectra import Spectra
from specjax.surveys import sparcl
from specjax.surveys.io import tables
from specjax.surveys.io.snr import median_snr
from specjax.typing import FloatArray

_IDENTICAL = ("specid", "targetid")  # fields on which both responses must agree
_SHOWN = 3  # reasons in messages; the table has all


def check(record: Record, metadata: Record, min_snr: float | None) -> str | None:
    """Return why a record is not usable, or None if it is.

    Args:
        record: the record with its spectrum, as `spectras` returns it.
        metadata: what `find` returned for the same sparcl_id.
        min_snr: minimum median signal-to-noise ratio per pixel, if any.
    """
    for key in _IDENTICAL:
        value, before = record.get(key), metadata.get(key)
        if value is not None and before is not None and str(value) != str(before):
            return f"its {key} is {value}, but find returned {before}"
    try:
        spectrum = sparcl.from_records([record], "")
    except DataError as error:
        return str(error).partition("): ")[2] or str(error)
    except (TypeError, ValueError, OverflowError) as error:
        return f"a field has the wrong type: {' '.join(str(error).split())}"
    if not spectrum.valid.any():
        return "it has no usable pixel"
    if not spectrum.has_ivar:
        return "it has no inverse variance"
    snr = signal_to_noise(spectrum)
    if min_snr is None or snr >= min_snr:
        return None
    return f"its signal-to-noise ratio {snr:.1f} is below {min_snr:g}"


def signal_to_noise(spectrum: Spectra) -> float:
    """Return the median signal-to-noise ratio of the valid pixels of one spectrum."""
    return float(median_snr(spectrum.flux, spectrum.ivar, spectrum.valid)[0])


def write_table(
    path: Path,
    metadata: Mapping[str, Record],
    snr: Mapping[str, float],
    left_out: Mapping[str, str],
    meta: Mapping[str, Any],
) -> None:
    """Write one row per record found, with units; `left_out` has the reasons for missing spectra."""
    records = list(metadata.values())
    ids = list(metadata)
    specids = Counter(str(record.get("specid")) for record in records)
    table = Table({"id": ids})
    for name in ("specid", "targetid"):
        table[name] = _integers(records, name)
    for name in ("data_release", "spectype"):
        table[name] = [str(record.get(name) or "") for record in records]
    for name, unit in {"ra": "deg", "dec": "deg", "redshift": None, "redshift_err": None}.items():
        table[name] = Column(column_of_floats(records, name), unit=unit)
    table["redshift_warning"] = _integers(records, "redshift_warning")
    table["snr"] = [snr.get(name, float("nan")) for name in ids]
    table["specid_repeated"] = [specids[str(record.get("specid"))] > 1 for record in records]
    if any("target" in record for record in records):
        table["target"] = [str(record.get("target", "")) for record in records]
    if any("separation" in record for record in records):
        table["separation"] = Column(column_of_floats(records, "separation"), unit="arcsec")
    table["left_out"] = [left_out.get(name, "") for name in ids]
    tables.write_table(path, {name: table[name] for name in table.colnames}, meta=meta)


def report(
    metadata: Mapping[str, Record], left_out: Mapping[str, str], found: Mapping[str, Any], say: Say
) -> None:
    """Report repeated specids, stars without a spectrum, and spectra that were left out."""
    specids = Counter(
        str(record["specid"]) for record in metadata.values() if record.get("specid") is not None
    )
    repeated = [name for name, count in specids.items() if count > 1]
    if repeated:
        say(f"{len(repeated)} specids occur more than once, the first {repeated[0]}: join on sparcl_id")
    absent, first = found["absent"]
    if absent:
        say(f"{absent} targets have no spectrum, the first {first}")
    if found["duplicates"]:
        say(f"{found['duplicates']} spectra lost their target to a nearer one")
    for name, reason in list(left_out.items())[:_SHOWN]:
        say(f"left out: {name}: {reason}")
    if len(left_out) > _SHOWN:
        say(f"and {len(left_out) - _SHOWN} more: see the column left_out")


def column_of_floats(records: Sequence[Record], name: str) -> FloatArray:
    """Return one field of all records as (n,) numbers; NaN where it is missing or not a number."""
    values = np.full(len(records), np.nan)
    for row, record in enumerate(records):
        try:
            values[row] = float(record[name])
        except (KeyError, TypeError, ValueError):
            continue
    return values


def _integers(records: Sequence[Record], name: str) -> list[Any]:
    """Return one field of all records as integers, or as text if one of them is not an integer."""
    values = [record.get(name) for record in records]
    if all(isinstance(value, int) and abs(value) < 1 << 63 for value in values):
        return values
    return ["" if value is None else str(value) for value in values]
