"""Request Gaia XP spectra through GaiaXPy or astroquery, which come with the extra specjax[gaia]."""

import http.client
import importlib
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import ConfigError, DataError, DownloadError
from specjax.services.retry import TransientError
from specjax.surveys.io import xp_tables

Sample = tuple[Sequence[float], Sequence[float]]
"""Flux and flux error of one source, (343,) each."""

Source = Callable[[Sequence[int]], Mapping[int, Sample]]
"""A function that requests sources and returns {source_id: sample} of those that the archive has."""


def calibrated(ids: Sequence[int]) -> Mapping[int, Sample]:
    """Fetch the coefficients of sources and calibrate them with GaiaXPy.

    Raises:
        ConfigError: GaiaXPy is not installed.
        DownloadError: GaiaXPy refuses the request.
        TransientError: the archive fails for a reason that may pass.
    """
    gaiaxpy = _extra("gaiaxpy")
    with _archive_errors("GaiaXPy"):
        try:
            # save_file is on by default and writes a file to the working directory.
            table, _ = gaiaxpy.calibrate(
                [int(source) for source in ids], sampling=np.arange(336, 1021, 2), save_file=False
            )
        except ValueError as error:
            if "no continuous" in str(error).lower():
                return {}
            raise
    columns = [table[name] for name in ("source_id", "flux", "flux_error")]
    return {int(name): (flux, error) for name, flux, error in zip(*columns, strict=True)}


def sampled(ids: Sequence[int]) -> Mapping[int, Sample]:
    """Fetch the archive's own sampled spectra of sources from DataLink with astroquery.

    Raises:
        ConfigError: astroquery is not installed.
        DownloadError: the archive refuses the request.
        TransientError: the archive fails for a reason that may pass.
    """
    gaia = _extra("astroquery.gaia").Gaia
    with _archive_errors("the Gaia archive"):
        files = gaia.load_data(
            ids=[int(source) for source in ids],
            retrieval_type="XP_SAMPLED",
            data_structure="RAW",
            data_release="Gaia DR3",
            format="fits",
        )
    return samples_of(files)


def samples_of(files: Mapping[str, Iterable[Any]]) -> dict[int, Sample]:
    """Collect the spectra of DataLink's files, {name: tables}, in any of its structures.

    RAW has one row per source, INDIVIDUAL one file per source, and COMBINED one file with one row per sample.

    Raises:
        DataError: a table lacks a column.
    """
    samples: dict[int, Sample] = {}
    for name, tables in files.items():
        for table in tables:
            table = table.to_table() if hasattr(table, "to_table") else table
            columns = {column.lower(): list(table[column]) for column in table.colnames}
            if not columns.get("flux"):
                continue
            if np.ndim(columns["flux"][0]) == 0:
                columns = {key: list(v) for key, v in xp_tables.gather(Path(name), columns).items()}
            missing = [key for key in ("source_id", "flux", "flux_error") if key not in columns]
            if missing:
                raise DataError(f"{name} of the Gaia archive has no column {', '.join(missing)}")
            rows = zip(columns["source_id"], columns["flux"], columns["flux_error"], strict=True)
            samples |= {int(source): (flux, error) for source, flux, error in rows}
    return samples


def _extra(name: str) -> Any:
    try:
        with _quiet():
            return importlib.import_module(name)
    except ImportError:
        package = "GaiaXPy" if name == "gaiaxpy" else "astroquery"
        raise ConfigError(f"fetching XP spectra needs {package}: pip install 'specjax[gaia]'") from None


@contextmanager
def _archive_errors(what: str) -> Iterator[None]:
    """Convert what the packages raise to one line, and keep their output from stdout."""
    try:
        with _quiet():
            yield
    except ValueError as error:
        raise DownloadError(f"{what}: {_line(error)}") from None
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
        raise TransientError(f"the Gaia archive fails ({_line(error)})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings, which concern the packages' own dependencies and VOTables, and print to stderr."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]
