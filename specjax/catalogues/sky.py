"""Which rows of two catalogues are the same star on the sky, one to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from numpy.typing import ArrayLike

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.typing import FloatArray, IntArray

RADIUS = 1.0
"""Arcsec within which two positions are the same star."""


@dataclass(frozen=True, kw_only=True)
class SkyMatch:
    """Pairs of rows, and what was not paired because it was near the same star.

    Attributes:
      left, right: (k,) row numbers; no row occurs twice on either side.
      separation: (k,) arcsec.
      duplicates: (m, 2) row numbers (left, right): left rows whose nearest right row went to a nearer one.
    """

    left: IntArray
    right: IntArray
    separation: FloatArray
    duplicates: IntArray


def match(
    left_ra: ArrayLike,
    left_dec: ArrayLike,
    right_ra: ArrayLike,
    right_dec: ArrayLike,
    radius: float = RADIUS,
) -> SkyMatch:
    """Each left row with its nearest right row within `radius` arcsec; of several for one, the nearest.

    Positions are degrees; rows where one is NaN match nothing. Proper motion between epochs is not applied.

    Raises:
      DataError: positions of different lengths, or declinations beyond 90 degrees.
    """
    left, left_rows = _positions(left_ra, left_dec)
    right, right_rows = _positions(right_ra, right_dec)
    if not len(left_rows) or not len(right_rows):
        none = np.zeros(0, dtype=np.int64)
        return SkyMatch(left=none, right=none, separation=np.zeros(0), duplicates=none.reshape(0, 2))
    nearest, apart, _ = left.match_to_catalog_sky(right)
    arcsec = np.asarray(apart.to_value(units.arcsec))
    close = np.flatnonzero(arcsec <= radius)
    # By separation, the first left row of each right row is the nearest; lexsort keeps ties in row order.
    close = close[np.lexsort((close, arcsec[close]))]
    _, first = np.unique(nearest[close], return_index=True)
    kept = np.sort(close[first])
    lost = np.sort(np.setdiff1d(close, kept))
    return SkyMatch(
        left=left_rows[kept],
        right=right_rows[nearest[kept]],
        separation=arcsec[kept],
        duplicates=np.stack([left_rows[lost], right_rows[nearest[lost]]], axis=1),
    )


def match_catalogue(spectra: Spectra, labels: Table, radius: float = RADIUS) -> SkyMatch:
    """`match` of spectra with meta ra and dec to a table with columns ra and dec, both in degrees.

    Raises:
      DataError: no positions on one side.
    """
    for name, columns in (("spectra", spectra.meta), ("labels", labels.columns)):
        missing = [key for key in ("ra", "dec") if key not in columns]
        if missing:
            raise DataError(f"the {name} have no {' and no '.join(missing)} to be matched on the sky")
        if not (np.isfinite(columns["ra"]) & np.isfinite(columns["dec"])).any():
            raise DataError(f"the positions (ra, dec) of the {name} are not known: no match on the sky")
    return match(spectra.meta["ra"], spectra.meta["dec"], labels["ra"], labels["dec"], radius)


def _positions(ra: Any, dec: Any) -> tuple[SkyCoord, IntArray]:
    """Coordinates of the rows that have them, and their row numbers."""
    ra, dec = (np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan) for values in (ra, dec))
    if ra.shape != dec.shape or ra.ndim != 1:
        raise DataError(f"right ascensions {ra.shape} do not fit declinations {dec.shape}")
    rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if (np.abs(dec[rows]) > 90).any():
        raise DataError("declinations are beyond 90 degrees: are right ascension and declination swapped?")
    return SkyCoord(ra[rows], dec[rows], unit="deg"), rows
