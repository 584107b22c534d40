"""The Gaia archive through GaiaXPy or astroquery, which come with the extra specjax[gaia]."""

from __future__ import annotations

import http.client
import importlib
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import ConfigError, DataError, DownloadError
from specjax.services.retry import TransientError
from specjax.surveys.io import xp_tables

Sample = tuple[Sequence[float], Sequence[float]]
Source = Callable[[Sequence[int]], Mapping[int, Sample]]
"""What asks the archive: {source_id: (flux, flux_error)} of those that it has, (343,) each."""


def calibrated(ids: Sequence[int]) -> Mapping[int, Sample]:
    """Spectra of sources by GaiaXPy, which fetches their coefficients and calibrates them.

    Raises:
      ConfigError: GaiaXPy is not installed.
      TransientError: the archive fails in a way that may pass.
    """
    gaiaxpy = _extra("gaiaxpy")
    try:
        # save_file is on by default, and leaves a file where the user happens to be.
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # of GaiaXPy about its own dependencies
            table, _ = gaiaxpy.calibrate(
                [int(source) for source in ids], sampling=np.arange(336, 1021, 2), save_file=False
            )
    except ValueError as error:
        if "no continuous" in str(error).lower():
            return {}
        raise DownloadError(f"GaiaXPy: {_line(error)}") from None
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
        raise TransientError(f"the Gaia archive fails ({_line(error)})") from None
    columns = [table[name] for name in ("source_id", "flux", "flux_error")]
    return {int(name): (flux, error) for name, flux, error in zip(*columns, strict=True)}


def sampled(ids: Sequence[int]) -> Mapping[int, Sample]:
    """The archive's own sampled spectra of sources, by DataLink through astroquery.

    Raises:
      ConfigError: astroquery is not installed.
      TransientError: the archive fails in a way that may pass.
    """
    gaia = _extra("astroquery.gaia").Gaia
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # of its own VOTables
            files = gaia.load_data(
                ids=[int(source) for source in ids],
                retrieval_type="XP_SAMPLED",
                data_structure="RAW",
                data_release="Gaia DR3",
                format="fits",
            )
    except ValueError as error:
        raise DownloadError(f"the Gaia archive: {_line(error)}") from None
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
        raise TransientError(f"the Gaia archive fails ({_line(error)})") from None
    return samples_of(files)


def samples_of(files: Mapping[str, Iterable[Any]]) -> dict[int, Sample]:
    """The spectra of DataLink's files, {name: tables}, whatever its structure.

    RAW has a row for each source; INDIVIDUAL a file for each source and COMBINED one of all, with a row for
    each sample.

    Raises:
      DataError: a table of other columns.
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
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        what = "GaiaXPy" if name == "gaiaxpy" else "astroquery"
        raise ConfigError(f"fetching XP spectra needs {what}: pip install 'specjax[gaia]'") from None


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]
