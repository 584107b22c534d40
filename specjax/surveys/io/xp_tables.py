"""Gaia XP tables with a row for each sample, DataLink's structures INDIVIDUAL and COMBINED."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError

PREFIX = "XP_SAMPLED"
"""How DataLink names these files: "XP_SAMPLED-Gaia DR3 4042548725000000000.csv"."""

_COLUMNS = {"wavelength", "flux", "flux_error"}
_SOURCE = re.compile(r"Gaia[ _]DR\d[ _](\d+)")

Columns = Mapping[str, Sequence[Any]]


def is_one_sample_a_row(path: Path, names: set[str]) -> bool:
    """Whether columns of these names, in a file of this name, are samples of one or several sources."""
    return names >= _COLUMNS and ("source_id" in names or path.name.startswith(PREFIX))


def gather(path: Path, columns: Columns) -> Columns:
    """The columns of a table with a row for each source: source_id, flux, flux_error, wavelength_nm (343,).

    The source is that of the column source_id; a file of one source may have it in its name alone.

    Raises:
      DataError: no source_id, samples at other wavelengths for some sources, or not numbers.
    """
    sources = [str(value) for value in columns.get("source_id", ())]
    if not sources:
        found = _SOURCE.search(path.name)
        if found is None:
            raise DataError(f"{path} says neither in a column source_id nor in its name whose spectrum it is")
        sources = [found[1]] * len(columns["flux"])
    names, source_of = np.unique(sources, return_inverse=True)
    order = np.argsort(source_of, kind="stable")  # samples of one source together, in the file's order
    ends = np.cumsum(np.bincount(source_of))[:-1]
    split = {name: np.split(_numbers(path, name, columns[name])[order], ends) for name in sorted(_COLUMNS)}
    grids = split["wavelength"]
    if not all(np.array_equal(grid, grids[0]) for grid in grids):
        raise DataError(f"{path}: its {len(names)} sources are not sampled at the same wavelengths")
    return {
        "source_id": names.tolist(),
        "wavelength_nm": grids[0],
        **{key: split[key] for key in ("flux", "flux_error")},
    }


def _numbers(path: Path, name: str, values: Sequence[Any]) -> np.ndarray:
    try:
        return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    except (TypeError, ValueError):
        raise DataError(f"{path}: column {name} does not hold numbers") from None
