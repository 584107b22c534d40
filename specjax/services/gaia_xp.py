"""Fetch Gaia XP spectra of a list of sources into a folder, a few hundred at a time.

The folder gets `gaia_xp.fits`, with one row per source (flux and flux_error at the 343 samples, with units),
`spectra.h5`, the same spectra under the user's own ids, as `specjax adapt --xp` takes them, and
`spectra.ecsv`, which lists for each id whether the archive has a spectrum. The same command resumes an
interrupted download.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.table import Column, Table

from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DataError
from specjax.pixels import inverse_variance
from specjax.progress import Say, say
from specjax.services.gaia_archive import Sample, Source, calibrated, sampled
from specjax.services.pages import DownloadFolder, Page, Record, write_errors
from specjax.services.retry import Retry
from specjax.services.spectra_file import SpectraFile
from specjax.services.star_list import StarList, from_ids, read_star_list
from specjax.spectra import Spectra
from specjax.surveys.io.tables import write_table
from specjax.typing import FloatArray
from specjax.wavelength import GAIA_XP_WAVELENGTH

IDS = ("source_id", "gaia_source_id", "gaiaedr3_source_id", "gaia_dr3_source_id")
"""Columns of a table that can hold Gaia source ids, in order of preference, in any case."""

CALL_LIMIT = 5000
"""The most sources that DataLink accepts in one call."""

SAMPLED, SPECTRA, TABLE = "gaia_xp.fits", "spectra.h5", "spectra.ecsv"
FLUX_UNIT = "W / (m2 nm)"

Product = Literal["continuous", "sampled"]


def fetch_gaia_xp(
    out: str | Path,
    *,
    ids: Sequence[str] = (),
    targets: str | Path | None = None,
    product: Product = "continuous",
    page: int = 500,
    source: Source | None = None,
    retry: Retry | None = None,
    say: Say = say,
) -> Path:
    """Fetch spectra into the folder `out`, or resume, and return the file of spectra under the user's ids.

    Args:
        out: a new folder, or one of the same ids.
        ids: source ids, in place of a table.
        targets: a table with a column of `IDS` and optionally id, the user's names, which may share a source.
        product: "continuous" for coefficients calibrated by GaiaXPy (all sources with XP spectra), "sampled"
            for the archive's own sampled spectra (brighter sources).
        page: sources requested in one call.
        source: requests the archive in place of GaiaXPy or astroquery.
        retry: how transient failures are retried.
        say: takes lines of progress.

    Raises:
        ConfigError: an option or folder is invalid, or the extra specjax[gaia] is not installed.
        DataError: an id is invalid, or no source has a usable spectrum.
        DownloadError: the archive or the disk fails; what was fetched is kept.
    """
    if not 1 <= page <= CALL_LIMIT:
        raise ConfigError(f"a page must have 1 to {CALL_LIMIT} sources, not {page}")
    if (targets is None) == (not ids):
        raise ConfigError("give source ids or a table of targets, and not both")
    stars = from_ids("source_id", ids) if targets is None else read_star_list(targets, IDS, sky=False)
    source = source or {"continuous": calibrated, "sampled": sampled}[product]
    query = {"service": "gaia-xp", "product": product, "page": page}
    about = f"{len(stars)} sources ({stars.digest()})"
    folder = DownloadFolder.open(Path(out), {**query, "targets": about}, say)
    fetch_page = partial(_fetch_page, source, retry or Retry(), say)
    fetched = folder.fetch(stars.values.tolist(), page, fetch_page)
    if fetched or not all((folder.path / name).exists() for name in (SAMPLED, SPECTRA, TABLE)):
        _write(folder, stars, page)
    say(f"{folder.path / SPECTRA}: ready")
    return folder.path / SPECTRA


def _fetch_page(source: Source, retry: Retry, say: Say, ids: list[str]) -> Page:
    """Fetch the spectra of ids, requesting once more those that a response lacks, because it may be short."""
    numbers = [int(name) for name in ids]
    found = _request(source, retry, say, numbers)
    missing = [number for number in numbers if number not in found]
    if missing and len(missing) < len(ids):
        found |= _request(source, retry, say, missing)
    records: list[Record] = []
    left_out: dict[str, str] = {}
    for name, number in zip(ids, numbers, strict=True):
        if number not in found:
            left_out[name] = "the archive has no XP spectrum of it"
            continue
        flux, error = (_list(values) for values in found[number])
        if len(flux) == len(error) == GAIA_XP_WAVELENGTH.size:
            records.append({"source_id": name, "flux": flux, "flux_error": error})
        else:
            left_out[name] = f"it has {len(flux)} samples and {len(error)} errors, not 343"
    return Page(records=records, left_out=left_out, absent=sum(number not in found for number in numbers))


def _request(source: Source, retry: Retry, say: Say, ids: list[int]) -> dict[int, Sample]:
    """Request sources and return those of the response that were requested."""
    response = retry.call(lambda: source(ids), "Gaia XP", say)
    return {number: response[number] for number in ids if number in response}


def _list(values: Any) -> list[float]:
    return [float(v) for v in np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).ravel()]


def _write(folder: DownloadFolder, stars: StarList, size: int) -> None:
    """Write the three files from the pages."""
    samples: dict[str, Record] = {}
    left_out: dict[str, str] = {}
    for page in folder.read(stars.values.tolist(), size):
        samples |= {str(record["source_id"]): record for record in page.records}
        left_out |= page.left_out
    if not samples:
        reason = next(iter(left_out.values()))
        raise DataError(f"{folder.path}: none of {len(stars)} sources is usable; the first: {reason}")
    pairs = [*zip(stars.names.tolist(), stars.values.tolist(), strict=True), *stars.aliases]
    with write_errors(folder.path):
        _write_samples(folder.path / SAMPLED, list(samples.values()))
        _write_spectra(folder.path / SPECTRA, [(name, samples[id]) for name, id in pairs if id in samples])
        columns = {
            "id": [name for name, _ in pairs],
            "source_id": np.array([int(id) for _, id in pairs]),
            "left_out": [left_out.get(id, "") for _, id in pairs],
        }
        write_table(folder.path / TABLE, columns, meta={"flux_unit": FLUX_UNIT})
    if left_out:
        name, reason = next(iter(left_out.items()))
        folder.say(f"{len(left_out)} sources are left out, the first {name}: {reason}")


def _write_samples(path: Path, records: Sequence[Record]) -> None:
    table = Table({"source_id": np.array([int(record["source_id"]) for record in records])})
    for name in ("flux", "flux_error"):
        table[name] = Column([_array(record[name]) for record in records], unit=FLUX_UNIT)
    with atomic_file(path) as temporary:
        table.write(temporary, format="fits", overwrite=True)


def _write_spectra(path: Path, records: Sequence[tuple[str, Record]]) -> None:
    with (
        atomic_file(path) as temporary,
        SpectraFile(temporary, GAIA_XP_WAVELENGTH, "gaia_xp", FLUX_UNIT) as file,
    ):
        file.append([_spectrum(name, record) for name, record in records])


def _spectrum(name: str, record: Record) -> Spectra:
    ivar = inverse_variance(_array(record["flux_error"]))
    source = [str(record["source_id"])]
    return Spectra.build(
        GAIA_XP_WAVELENGTH, _array(record["flux"]), ivar, id=[name], meta={"source_id": source}
    )


def _array(values: Sequence[float | None]) -> FloatArray:
    """Convert numbers of a stored page, where NaN is null."""
    return np.array(values, dtype=np.float64)
