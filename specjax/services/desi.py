"""Fetch spectra of DESI stars from SPARCL into a folder.

The folder gets `spectra.h5`, which `specjax.read` and `specjax adapt` take (ids are sparcl_ids), and
`spectra.ecsv`, with one row per record found, including those that were left out and why. It keeps
`query.json`, `found.json.gz` and the pages of records as the archive returned them, each a file that
`specjax.read` takes, so that the same command resumes an interrupted download.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DataError
from specjax.progress import Say, say
from specjax.services.desi_search import DesiQuery, find
from specjax.services.pages import DownloadFolder, Page, Record, write_errors
from specjax.services.records import check, report, signal_to_noise, write_table
from specjax.services.retry import Retry
from specjax.services.sparcl import Sparcl
from specjax.services.spectra_file import SpectraFile
from specjax.services.star_list import StarList, from_ids, read_star_list
from specjax.spectra import Spectra
from specjax.surveys import sparcl as reader
from specjax.typing import FloatArray

IDS = ("sparcl_id", "targetid", "specid")
"""Columns of a table that can identify spectra, in order of preference; else ra and dec."""

SPECTRA, TABLE = "spectra.h5", "spectra.ecsv"
FLUX_UNIT = "1e-17 erg / (s cm2 Angstrom)"

_REPEATS = 2  # further requests for records that are missing from a page


def fetch_desi(
    query: DesiQuery,
    out: str | Path,
    *,
    targets: str | Path | None = None,
    ids: Sequence[str] = (),
    url: str | None = None,
    retry: Retry | None = None,
    say: Say = say,
) -> Path:
    """Fetch spectra into the folder `out`, or resume, and return the file of spectra.

    Args:
        query: constraints, which also apply to targets.
        out: a new folder, or one of the same query.
        targets: a table with a column sparcl_id, targetid or specid, or with ra and dec in degrees.
        ids: sparcl_ids, in place of a table.
        url: address of the archive; else $SPECJAX_SPARCL_URL, else the public one.
        retry: how transient failures are retried.
        say: takes lines of progress.

    Raises:
        ConfigError: an option or folder is invalid, or the release is unknown.
        DataError: the table is invalid, nothing was found, or nothing that was found is usable.
        DownloadError: the archive or the disk fails; what was fetched is kept.
    """
    stars = _star_list(targets, ids)
    _check_options(query, stars)
    archive = Sparcl.connect(query.release, url, retry, say)
    folder = DownloadFolder.open(Path(out), _description(query, stars), say)
    found = folder.cached("found.json.gz", lambda: find(archive, query, stars, say))
    metadata = {str(record["sparcl_id"]): record for record in found["records"]}
    fetched = folder.fetch(
        list(metadata), query.page, lambda chunk: _fetch_page(archive, chunk, metadata, query.min_snr, say)
    )
    target = folder.path / SPECTRA
    if fetched or not target.exists() or not (folder.path / TABLE).exists():
        _write(folder, target, query, metadata, found)
    say(f"{target}: ready")
    return target


def _star_list(table: str | Path | None, ids: Sequence[str]) -> StarList | None:
    if table is not None and ids:
        raise ConfigError("give ids or a table of targets, not both")
    if table is not None:
        return read_star_list(table, IDS, sky=True)
    return from_ids("sparcl_id", ids) if ids else None


def _check_options(query: DesiQuery, stars: StarList | None) -> None:
    constraints = (query.limit, query.ra, query.dec, query.redshift)
    if stars is None and all(option is None for option in constraints):
        raise ConfigError(
            f"this query selects every star of {query.release}; give targets, ids, a limit, or a range of "
            "ra, dec or redshift"
        )
    if stars is not None and stars.sky is None and (query.ra is not None or query.dec is not None):
        raise ConfigError("ranges of ra and dec cannot be combined with ids")


def _description(query: DesiQuery, stars: StarList | None) -> dict[str, Any]:
    targets = None if stars is None else f"{len(stars)} by {stars.kind} ({stars.digest()})"
    return {"service": "sparcl", **asdict(query), "targets": targets}


def _fetch_page(
    archive: Sparcl, ids: list[str], metadata: Mapping[str, Record], min_snr: float | None, say: Say
) -> Page:
    """Fetch the records of ids, check them and return them in this order."""
    records, conflicting = _retrieve(archive, ids, say)
    left_out = dict.fromkeys(conflicting, "the archive returned two different records of it")
    missing = [name for name in ids if name not in records]
    left_out |= dict.fromkeys(missing, "the archive returned no record of it")
    usable = []
    for name in ids:
        if name in left_out:
            continue
        reason = check(records[name], metadata[name], min_snr)
        if reason is None:
            usable.append(records[name])
        else:
            left_out[name] = reason
    return Page(records=usable, left_out=left_out, absent=len(missing))


def _retrieve(archive: Sparcl, ids: list[str], say: Say) -> tuple[dict[str, Record], list[str]]:
    """Request records, repeatedly those that are missing; also return the ids with conflicting records."""
    records: dict[str, Record] = {}
    conflicting: list[str] = []
    missing = ids
    for attempt in range(1 + _REPEATS):
        response = archive.retrieve(missing)
        unexpected = 0
        for record in response:
            name = str(record.get("sparcl_id"))
            if name not in missing:
                unexpected += 1
            elif not _identical(records.setdefault(name, record), record):
                conflicting.append(name)
        if unexpected:
            say(f"{unexpected} records that were not requested are ignored")
        missing = [name for name in ids if name not in records]
        if not missing:
            break
        if attempt < _REPEATS:
            say(f"{len(missing)} of {len(ids)} records are missing from the response; requesting them again")
    return records, conflicting


def _identical(one: Record, other: Record) -> bool:
    """Return whether two records are equal, where NaN equals NaN."""
    return one is other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _write(
    folder: DownloadFolder,
    target: Path,
    query: DesiQuery,
    metadata: Mapping[str, Record],
    found: Mapping[str, Any],
) -> None:
    """Write the file of spectra and the table from the pages."""
    left_out: dict[str, str] = {}
    snr: dict[str, float] = {}
    ids = list(metadata)
    with write_errors(target):
        with atomic_file(target) as temporary:
            grid = _most_common_grid(folder, ids, query.page)
            with SpectraFile(temporary, grid, "desi", FLUX_UNIT) as file:
                for page in folder.read(ids, query.page):
                    left_out |= page.left_out
                    spectra = _on_grid_of(file, page.records, left_out)
                    if spectra:
                        snr |= {spectrum.id[0]: spectrum.meta["snr"][0] for spectrum in spectra}
                        file.append(spectra)
        meta = {"release": query.release, "flux_unit": FLUX_UNIT}
        write_table(folder.path / TABLE, metadata, snr, left_out, meta)
    report(metadata, left_out, found, folder.say)


def _most_common_grid(folder: DownloadFolder, ids: list[str], size: int) -> FloatArray:
    """Return the most common grid of the first page that has records."""
    left_out: dict[str, str] = {}
    for page in folder.read(ids, size):
        left_out |= page.left_out
        grids = [reader.from_records([record], "").wavelength for record in page.records]
        if grids:
            ((common, _),) = Counter(grid.tobytes() for grid in grids).most_common(1)
            return next(grid for grid in grids if grid.tobytes() == common)
    name, reason = next(iter(left_out.items()))
    raise DataError(f"{folder.path}: none of {len(ids)} records is usable; the first, {name}: {reason}")


def _on_grid_of(file: SpectraFile, records: Sequence[Record], left_out: dict[str, str]) -> list[Spectra]:
    """Return the spectra on the file's grid, with their signal-to-noise ratio; record the others."""
    spectra = []
    for record in records:
        spectrum = reader.from_records([record], "")
        if file.has_grid_of(spectrum):
            spectra.append(spectrum.with_meta(snr=[signal_to_noise(spectrum)]))
        else:
            left_out[str(record["sparcl_id"])] = "its wavelengths differ from those of the others"
    return spectra
