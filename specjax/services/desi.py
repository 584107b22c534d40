"""Stars of DESI from SPARCL: found by constraints or a table, fetched in pages, written as one file.

The folder gets `spectra.h5`, which `specjax.read` and `specjax adapt` take (ids are sparcl_ids), and
`spectra.ecsv`, a row for each record found, also of those that were left out and why. Beside them stay
`query.json`, `found.json` and the pages of records as the archive gave them, each a file that `specjax.read`
takes: the same command goes on from what is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DataError, DownloadError
from specjax.progress import Say, say
from specjax.services.boxes import find_all, find_in, sky
from specjax.services.desi_query import DesiQuery
from specjax.services.pages import Folder, Page, Record
from specjax.services.records import check, match_targets, near, report, signal_to_noise, write_table
from specjax.services.retry import Patience
from specjax.services.sparcl import Sparcl
from specjax.services.stack import Stack
from specjax.services.star_list import Targets, from_ids, read_targets
from specjax.spectra import Spectra
from specjax.surveys import sparcl as reader
from specjax.typing import FloatArray

IDS = ("sparcl_id", "targetid", "specid")
"""Columns by which a table may name spectra, in order of preference; else ra and dec."""

SPECTRA, TABLE = "spectra.h5", "spectra.ecsv"
FLUX_UNIT = "1e-17 erg / (s cm2 Angstrom)"

_IDS_A_CALL = 500
_ASKED_AGAIN = 2  # times for records that are missing from a page


def fetch_desi(
    query: DesiQuery,
    out: str | Path,
    *,
    targets: str | Path | None = None,
    ids: Sequence[str] = (),
    url: str | None = None,
    patience: Patience | None = None,
    say: Say = say,
) -> Path:
    """Fetch into the folder `out`, or go on with it; returns the file of spectra.

    Args:
      query: constraints; they hold for targets too.
      out: a new folder, or one of the same query.
      targets: a table with a column sparcl_id, targetid or specid, or with ra and dec (degrees).
      ids: sparcl_ids, in place of a table.
      url: another address of the archive; else $SPECJAX_SPARCL_URL, else the public one.
      patience: waits and attempts.
      say: takes lines of progress.

    Raises:
      ConfigError: an option or a folder that cannot be used, an unknown release.
      DataError: a table that cannot be used, nothing found, or nothing usable among what was found.
      DownloadError: the archive fails or the disk does; what was fetched stays.
    """
    wanted = _targets(targets, ids)
    _check_together(query, wanted)
    archive = Sparcl.connect(query.release, url, patience, say)
    folder = Folder.open(Path(out), _description(query, wanted), say)
    found = folder.remember("found.json", lambda: _find(archive, query, wanted, say))
    metadata = {str(record["sparcl_id"]): record for record in found["records"]}
    names = list(metadata)
    fetched = folder.fetch(
        names, query.page, lambda chunk: _fetch_page(archive, chunk, metadata, query.min_snr, say)
    )
    target = folder.path / SPECTRA
    if fetched or not target.exists() or not (folder.path / TABLE).exists():
        _write(folder, target, query, metadata, found)
    say(f"{target}: ready")
    return target


def _targets(table: str | Path | None, ids: Sequence[str]) -> Targets | None:
    if table is not None and ids:
        raise ConfigError("give ids or a table of targets, not both")
    if table is not None:
        return read_targets(table, IDS, sky=True)
    return from_ids("sparcl_id", ids) if ids else None


def _check_together(query: DesiQuery, targets: Targets | None) -> None:
    narrow = (query.limit, query.ra, query.dec, query.redshift)
    if targets is None and all(option is None for option in narrow):
        raise ConfigError(
            f"that is every star of {query.release}: give targets, ids, a limit, or a range of ra, dec or "
            "redshift"
        )
    if targets is not None and targets.sky is None and (query.ra is not None or query.dec is not None):
        raise ConfigError("ranges of ra and dec have no use where spectra are named by ids")


def _description(query: DesiQuery, targets: Targets | None) -> dict[str, Any]:
    about = None if targets is None else f"{len(targets)} by {targets.kind} ({targets.digest()})"
    return {"service": "sparcl", **asdict(query), "targets": about}


def _find(archive: Sparcl, query: DesiQuery, targets: Targets | None, say: Say) -> dict[str, Any]:
    """Metadata of the records to fetch, and the targets that have none."""
    if targets is not None and targets.sky is None:
        records = _find_ids(archive, query, targets, say)
    else:
        records = _find_sky(archive, query, targets, say)
    if targets is not None:
        found = match_targets(records, targets, query.radius, query.limit)
    else:
        found = {"records": sorted(records, key=lambda record: str(record["sparcl_id"]))}
        found |= {"absent": [0, ""], "duplicates": 0}
    if not found["records"]:
        raise DataError(f"{archive.service.root}: {query.release} has no spectrum that was asked for")
    return found


def _find_sky(archive: Sparcl, query: DesiQuery, targets: Targets | None, say: Say) -> list[Record]:
    """Records of a part of the sky, or near targets in it."""
    places = None if targets is None else targets.sky
    return find_in(
        archive,
        sky(query.ra or (0.0, 360.0), query.dec or (-90.0, 90.0), places),
        query.search,
        radius=query.radius / 3600.0,
        wanted=query.limit if targets is None else None,
        keep=list if places is None else lambda some: near(some, places, query.radius),
        say=say,
    )


def _find_ids(archive: Sparcl, query: DesiQuery, targets: Targets, say: Say) -> list[Record]:
    """Records of ids, a few hundred at a time; ids on the wire are whole numbers where they are numbers."""
    records: list[Record] = []
    values = targets.values.tolist()
    for start in range(0, len(values), _IDS_A_CALL):
        some = values[start : start + _IDS_A_CALL]
        asked = some if targets.kind == "sparcl_id" else [int(value) for value in some]
        search = {**query.search, targets.kind: asked}
        records += find_all(archive, search, archive.count(search))
        say(f"found {len(records)} records of {min(start + _IDS_A_CALL, len(values))} ids")
    unique = {str(record["sparcl_id"]): record for record in records if record.get("sparcl_id")}
    return list(unique.values())


def _fetch_page(
    archive: Sparcl, ids: list[str], metadata: Mapping[str, Record], min_snr: float | None, say: Say
) -> Page:
    """The records of ids, in their order; asked again for those that an answer does not have."""
    got: dict[str, Record] = {}
    left_out: dict[str, str] = {}
    missing = ids
    for attempt in range(1 + _ASKED_AGAIN):
        answer = archive.retrieve(missing)
        for record in answer:
            name = str(record.get("sparcl_id"))
            if name in missing and not _same(got.setdefault(name, record), record):
                left_out[name] = "the archive gives two different records of it"
        strangers = len(answer) - sum(str(record.get("sparcl_id")) in missing for record in answer)
        if strangers:
            say(f"{strangers} records that were not asked for are not used")
        missing = [name for name in ids if name not in got]
        if not missing:
            break
        if attempt < _ASKED_AGAIN:
            say(f"{len(missing)} of {len(ids)} records are missing from the answer; asking for them again")
    left_out |= {name: "the archive gives no record of it" for name in missing}
    records = []
    for name in ids:
        if name not in left_out:
            reason = check(got[name], metadata[name], min_snr)
            if reason is None:
                records.append(got[name])
            else:
                left_out[name] = reason
    return Page(records=records, left_out=left_out, absent=len(missing))


def _same(one: Record, other: Record) -> bool:
    """Whether two records say the same, where NaN is NaN."""
    return one is other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _write(
    folder: Folder, target: Path, query: DesiQuery, metadata: Mapping[str, Record], found: Mapping[str, Any]
) -> None:
    """The file of spectra and the table, from the pages."""
    left_out: dict[str, str] = {}
    snr: dict[str, float] = {}
    try:
        with atomic_file(target) as temporary:
            grid = _grid(folder, list(metadata), query.page)
            with Stack(temporary, grid, "desi", FLUX_UNIT) as stack:
                for page in folder.read(list(metadata), query.page):
                    left_out |= page.left_out
                    fitting = _fitting(stack, page.records, left_out)
                    if fitting:
                        snr |= {spectrum.id[0]: spectrum.meta["snr"][0] for spectrum in fitting}
                        stack.append(fitting)
        meta = {"release": query.release, "flux_unit": FLUX_UNIT}
        write_table(folder.path / TABLE, metadata, snr, left_out, meta)
    except OSError as error:
        raise DownloadError(f"cannot write {target}: {error.strerror or error}") from None
    report(metadata, left_out, found, folder.say)


def _grid(folder: Folder, names: list[str], size: int) -> FloatArray:
    """The grid that most records of the first page with any have."""
    left_out: dict[str, str] = {}
    for page in folder.read(names, size):
        left_out |= page.left_out
        grids = [reader.from_records([record], "").wavelength for record in page.records]
        if grids:
            ((common, _),) = Counter(grid.tobytes() for grid in grids).most_common(1)
            return next(grid for grid in grids if grid.tobytes() == common)
    name, reason = next(iter(left_out.items()))
    raise DataError(f"{folder.path}: none of {len(names)} records can be used; the first, {name}: {reason}")


def _fitting(stack: Stack, records: Sequence[Record], left_out: dict[str, str]) -> list[Spectra]:
    """The spectra on the file's grid, one by one, with their signal to noise."""
    fitting = []
    for record in records:
        spectrum = reader.from_records([record], "")
        if stack.fits(spectrum):
            fitting.append(spectrum.with_meta(snr=[signal_to_noise(spectrum)]))
        else:
            left_out[str(record["sparcl_id"])] = "its wavelengths are not those of the others"
    return fitting
