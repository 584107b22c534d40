"""Records of SPARCL: which can be used, which belong to which target, and the table about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Column, Table

from specjax.catalogues import sky
from specjax.errors import DataError
from specjax.progress import Say
from specjax.services.pages import Record
from specjax.services.star_list import Targets
from specjax.spectra import Spectra
from specjax.surveys import sparcl
from specjax.surveys.io import tables as label_tables
from specjax.surveys.io.snr import median_snr
from specjax.typing import FloatArray

_SAME = ("specid", "targetid")  # what both answers say of a record, and must agree on


def check(record: Record, found: Record, min_snr: float | None) -> str | None:
    """Why a record cannot be used; None if it can.

    Args:
      record: with its spectrum, as spectras gives it.
      found: what find said about the same sparcl_id.
      min_snr: median signal to noise of a pixel that is needed, if any.
    """
    for key in _SAME:
        said, before = record.get(key), found.get(key)
        if said is not None and before is not None and str(said) != str(before):
            return f"its {key} is {said}, but find gave {before}"
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
    return f"its signal to noise {snr:.1f} is below {min_snr:g}"


def signal_to_noise(spectrum: Spectra) -> float:
    """Median over the valid pixels of one spectrum."""
    return float(median_snr(spectrum.flux, spectrum.ivar, spectrum.valid)[0])


def near(records: Sequence[Record], places: FloatArray, radius: float) -> list[Record]:
    """The records within `radius` arcsec of one of the places, (k, 2) degrees."""
    at = _positions(records)
    known = np.flatnonzero(np.isfinite(at).all(axis=1))
    if not len(known) or not len(places):
        return []
    stars = SkyCoord(at[known, 0], at[known, 1], unit="deg")
    _, apart, _ = stars.match_to_catalog_sky(SkyCoord(places[:, 0], places[:, 1], unit="deg"))
    return [records[row] for row in known[np.asarray(apart.to_value(units.arcsec)) <= radius]]


def match_targets(
    records: Sequence[Record], targets: Targets, radius: float, limit: int | None
) -> dict[str, Any]:
    """The records of targets, in the order of the targets, each with `target` and, on the sky, `separation`.

    On the sky the match is one to one: a target gets the nearest record. By id, a target gets every record of
    that id, for a specid or a targetid may have several.

    Returns:
      {"records", "absent": (how many targets have none, the first of them), "duplicates": how many records
      lost their target to a nearer one}.
    """
    duplicates = 0
    pairs: list[tuple[int, Record]] = []
    if targets.sky is not None:
        at = _positions(records)
        found = sky.match(at[:, 0], at[:, 1], targets.sky[:, 0], targets.sky[:, 1], radius)
        duplicates = len(found.duplicates)
        for row, target, apart in zip(found.left, found.right, found.separation, strict=True):
            pairs.append((int(target), {**records[row], "separation": float(apart)}))
    else:
        row_of = {value: row for row, value in enumerate(targets.values.tolist())}
        pairs = [
            (row_of[str(record[targets.kind])], dict(record))
            for record in records
            if str(record.get(targets.kind)) in row_of
        ]
    pairs.sort(key=lambda pair: (pair[0], str(pair[1]["sparcl_id"])))
    absent = np.setdiff1d(np.arange(len(targets)), [target for target, _ in pairs])
    names = targets.names.tolist()
    return {
        "records": [{**record, "target": names[target]} for target, record in pairs][:limit],
        "absent": [len(absent), names[absent[0]] if len(absent) else ""],
        "duplicates": duplicates,
    }


def write_table(
    path: Path,
    metadata: Mapping[str, Record],
    snr: Mapping[str, float],
    left_out: Mapping[str, str],
    meta: Mapping[str, Any],
) -> None:
    """A row for each record found, with units; `left_out` says why one is not among the spectra."""
    rows = list(metadata.values())
    ids = list(metadata)
    specids = Counter(str(row.get("specid")) for row in rows)
    table = Table({"id": ids})
    for name in ("specid", "targetid"):
        table[name] = _whole(rows, name)
    for name in ("data_release", "spectype"):
        table[name] = [str(row.get(name) or "") for row in rows]
    for name, unit in {"ra": "deg", "dec": "deg", "redshift": None, "redshift_err": None}.items():
        table[name] = Column(_floats(rows, name), unit=unit)
    table["redshift_warning"] = _whole(rows, "redshift_warning")
    table["snr"] = [snr.get(name, float("nan")) for name in ids]
    table["specid_repeated"] = [specids[str(row.get("specid"))] > 1 for row in rows]
    if any("target" in row for row in rows):
        table["target"] = [str(row.get("target", "")) for row in rows]
    if any("separation" in row for row in rows):
        table["separation"] = Column(_floats(rows, "separation"), unit="arcsec")
    table["left_out"] = [left_out.get(name, "") for name in ids]
    label_tables.write_table(path, {name: table[name] for name in table.colnames}, meta=meta)


def report(
    metadata: Mapping[str, Record], left_out: Mapping[str, str], found: Mapping[str, Any], say: Say
) -> None:
    """Lines on what a user should know of what was fetched."""
    specids = Counter(str(row["specid"]) for row in metadata.values() if row.get("specid") is not None)
    repeated = [name for name, count in specids.items() if count > 1]
    if repeated:
        say(f"{len(repeated)} specids occur more than once, the first {repeated[0]}: join on sparcl_id")
    absent, first = found["absent"]
    if absent:
        say(f"{absent} targets have no spectrum, the first {first}")
    if found["duplicates"]:
        say(f"{found['duplicates']} spectra lost their target to a nearer one")
    for name, reason in list(left_out.items())[:3]:
        say(f"left out: {name}: {reason}")
    if len(left_out) > 3:
        say(f"and {len(left_out) - 3} more: see the column left_out")


def _positions(records: Sequence[Record]) -> FloatArray:
    return np.stack([_floats(records, "ra"), _floats(records, "dec")], axis=1)


def _floats(rows: Sequence[Record], name: str) -> FloatArray:
    """A column of numbers; what is not one is NaN."""
    values = np.full(len(rows), np.nan)
    for row, record in enumerate(rows):
        try:
            values[row] = float(record[name])
        except (KeyError, TypeError, ValueError):
            continue
    return values


def _whole(rows: Sequence[Record], name: str) -> list[Any]:
    """A column of whole numbers, or of texts if one of them is not."""
    values = [row.get(name) for row in rows]
    if all(isinstance(value, int) and abs(value) < 1 << 63 for value in values):
        return values
    return ["" if value is None else str(value) for value in values]
