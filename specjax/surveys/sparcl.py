"""Reader of JSON records of SPARCL, the spectral archive of NOIRLab (DESI, SDSS, BOSS)."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.many import join, report_left_out
from specjax.typing import FloatArray

_KIND = "a JSON list of SPARCL records"
SUFFIXES = (".json", ".json.gz")
_NEEDED = ("sparcl_id", "wavelength", "flux")
_NUMBERS = {"ra": "ra", "dec": "dec", "redshift": "redshift", "redshift_err": "redshift_err"}
_TEXTS = ("specid", "targetid", "data_release", "spectype", "subtype")


def recognise(path: Path) -> bool:
    """Whether `path` has the name of a JSON file, which no other reader takes."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def read(path: Path) -> Spectra:
    """Read the records of one file.

    The file is a response of the service: a list of records, possibly after a header without flux, or
    {"records": [...]}. Unusable records are left out with a warning, like unreadable files of a folder.

    Returns:
        Spectra in vacuum. ids are sparcl_ids, because specids are not unique; meta: specid, targetid,
        data_release, spectype, subtype, ra, dec (degrees), redshift (v/c for stars), redshift_err, zwarn (-1
        if unknown).

    Raises:
        DataError: the file has another layout, no record is usable, or a sparcl_id occurs twice.
    """
    path = Path(path)
    records = _records(path, _load(path))
    if not records:
        raise DataError(f"{path} contains no records with a flux")
    return from_records(records, str(path))


def from_records(records: Sequence[Mapping[str, Any]], where: str) -> Spectra:
    """Convert SPARCL records to spectra, see `read`; `where` is their source, for messages."""
    ids = [str(record.get("sparcl_id")) for record in records]
    names, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise DataError(f"{where}: sparcl_id {names[count > 1][0]} occurs more than once")
    parts, refused = [], []
    for row, record in enumerate(records):
        try:
            parts.append(_spectrum(record))
        except DataError as error:
            refused.append(f"{where}: record {row} ({ids[row]}): {error}")
    if not parts:
        raise DataError(refused[0])
    for reason in refused:
        report_left_out(reason)
    return join(parts)


def _load(path: Path) -> Any:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            return json.load(stream)
    except (OSError, EOFError, ValueError) as error:
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path} is not {_KIND}: {line[0]}") from None


def _records(path: Path, content: Any) -> list[Mapping[str, Any]]:
    rows = content.get("records") if isinstance(content, Mapping) else content
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{path} is not {_KIND}")
    # The first record of a response is a header, {"status": ...}.
    return rows[1:] if rows and "status" in rows[0] and "flux" not in rows[0] else rows


def _spectrum(record: Mapping[str, Any]) -> Spectra:
    missing = [name for name in _NEEDED if record.get(name) is None]
    if missing:
        raise DataError(f"it has no {', '.join(missing)}")
    zwarn = _number(record.get("redshift_warning"))
    return Spectra.build(
        _array(record["wavelength"], "wavelength"),
        _array(record["flux"], "flux"),
        None if record.get("ivar") is None else _array(record["ivar"], "ivar"),
        record.get("mask"),
        [str(record["sparcl_id"])],
        meta={
            **{key: [_number(record.get(name))] for key, name in _NUMBERS.items()},
            **{key: ["" if record.get(key) is None else str(record[key])] for key in _TEXTS},
            "zwarn": [int(zwarn) if np.isfinite(zwarn) else -1],
        },
        survey="sparcl",
    )


def _array(values: Any, name: str) -> FloatArray:
    """Convert a JSON list, in which null stands for NaN."""
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        raise DataError(f"{name} is not a list of numbers") from None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan
