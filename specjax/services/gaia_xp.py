"""Gaia XP spectra of a list of sources, fetched a few hundred at a time and matched on source_id.

The folder gets `gaia_xp.fits`, a row for each source (flux and flux_error on the 343 samples, with units),
and `spectra.h5`, the same under the user's own ids, as `specjax adapt --xp` wants them; and `spectra.ecsv`,
which says of each id whether the archive has a spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.table import Column, Table

from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DataError, DownloadError
from specjax.progress import Say, say
from specjax.services.gaia_archive import Sample, Source, calibrated, sampled
from specjax.services.pages import Folder, Page, Record
from specjax.services.retry import Patience
from specjax.services.stack import Stack
from specjax.services.star_list import Targets, from_ids, read_targets
from specjax.spectra import GAIA_XP_WAVELENGTH, Spectra
from specjax.surveys.io.tables import write_table

IDS = ("source_id", "gaia_source_id", "gaiaedr3_source_id", "gaia_dr3_source_id")
"""Columns of a table that hold Gaia's source ids, in order of preference and in any case."""

CALL_LIMIT = 5000
"""Sources that DataLink takes in one call."""

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
    patience: Patience | None = None,
    say: Say = say,
) -> Path:
    """Fetch into the folder `out`, or go on with it; returns the file of spectra under the user's ids.

    Args:
      out: a new folder, or one of the same ids.
      ids: source ids, in place of a table.
      targets: a table with a column of `IDS`, and perhaps id: the user's own names, which may share a source.
      product: "continuous" coefficients, calibrated by GaiaXPy (all sources with XP spectra), or the
        archive's own "sampled" spectra (the brighter ones).
      page: sources asked for in one call.
      source: asks the archive, in place of GaiaXPy or astroquery.
      patience: waits and attempts.
      say: takes lines of progress.

    Raises:
      ConfigError: an option or a folder that cannot be used, or the extra specjax[gaia] is missing.
      DataError: ids that cannot be used, or none with a spectrum.
      DownloadError: the archive fails or the disk does; what was fetched stays.
    """
    if not 1 <= page <= CALL_LIMIT:
        raise ConfigError(f"a call takes 1 to {CALL_LIMIT} sources, not {page}")
    if (targets is None) == (not ids):
        raise ConfigError("give source ids, or a table of targets")
    wanted = from_ids("source_id", ids) if targets is None else read_targets(targets, IDS, sky=False)
    source = source or {"continuous": calibrated, "sampled": sampled}[product]
    query = {"service": "gaia-xp", "product": product, "page": page}
    about = f"{len(wanted)} sources ({wanted.digest()})"
    folder = Folder.open(Path(out), {**query, "targets": about}, say)
    fetch_page = partial(_fetch_page, source, patience or Patience(), say)
    values = wanted.values.tolist()
    fetched = folder.fetch(values, page, fetch_page)
    target = folder.path / SPECTRA
    if fetched or not all((folder.path / name).exists() for name in (SAMPLED, SPECTRA, TABLE)):
        _write(folder, wanted, page)
    say(f"{target}: ready")
    return target


def _fetch_page(source: Source, patience: Patience, say: Say, ids: list[str]) -> Page:
    """The spectra of ids; asked once more for those that an answer does not have, for it may be short."""
    numbers = [int(name) for name in ids]
    found = _ask(source, patience, say, numbers)
    missing = [number for number in numbers if number not in found]
    if missing and len(missing) < len(ids):
        found |= _ask(source, patience, say, missing)
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


def _ask(source: Source, patience: Patience, say: Say, ids: list[int]) -> dict[int, Sample]:
    """The wanted ones of an answer, each key a whole number."""
    answer = patience.keep_trying(lambda: source(ids), "Gaia XP", say)
    return {number: answer[number] for number in ids if number in answer}


def _list(values: Any) -> list[float]:
    return [float(v) for v in np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan).ravel()]


def _write(folder: Folder, wanted: Targets, size: int) -> None:
    """The three files, from the pages."""
    samples: dict[str, Record] = {}
    left_out: dict[str, str] = {}
    for page in folder.read(wanted.values.tolist(), size):
        samples |= {str(record["source_id"]): record for record in page.records}
        left_out |= page.left_out
    if not samples:
        reason = next(iter(left_out.values()))
        raise DataError(f"{folder.path}: none of {len(wanted)} sources can be used; the first: {reason}")
    pairs = [*zip(wanted.names.tolist(), wanted.values.tolist(), strict=True), *wanted.aliases]
    try:
        _write_samples(folder.path / SAMPLED, list(samples.values()))
        spectra = [_spectrum(name, samples[value]) for name, value in pairs if value in samples]
        with (
            atomic_file(folder.path / SPECTRA) as temporary,
            Stack(temporary, GAIA_XP_WAVELENGTH, "gaia_xp", FLUX_UNIT) as stack,
        ):
            stack.append(spectra)
        columns = {
            "id": [name for name, _ in pairs],
            "source_id": np.array([int(value) for _, value in pairs]),
            "left_out": [left_out.get(value, "") for _, value in pairs],
        }
        write_table(folder.path / TABLE, columns, meta={"flux_unit": FLUX_UNIT})
    except OSError as error:
        raise DownloadError(f"cannot write into {folder.path}: {error.strerror or error}") from None
    if left_out:
        name, reason = next(iter(left_out.items()))
        folder.say(f"{len(left_out)} sources are left out, the first {name}: {reason}")


def _write_samples(path: Path, records: Sequence[Record]) -> None:
    table = Table({"source_id": np.array([int(record["source_id"]) for record in records])})
    for name in ("flux", "flux_error"):
        table[name] = Column([_array(record[name]) for record in records], unit=FLUX_UNIT)
    with atomic_file(path) as temporary:
        table.write(temporary, format="fits", overwrite=True)


def _spectrum(name: str, record: Record) -> Spectra:
    error = _array(record["flux_error"])
    with np.errstate(divide="ignore", invalid="ignore"):
        ivar = np.where(error > 0, 1.0 / error**2, 0.0)
    source = [str(record["source_id"])]
    return Spectra.build(
        GAIA_XP_WAVELENGTH, _array(record["flux"]), ivar, id=[name], meta={"source_id": source}
    )


def _array(values: Sequence[float | None]) -> np.ndarray:
    """Numbers of a stored page, where NaN is null."""
    return np.array(values, dtype=np.float64)
