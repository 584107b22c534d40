"""Match the rows of two catalogues one to one by position on the sky."""

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
"""Default matching radius in arcsec."""


@dataclass(frozen=True, kw_only=True)
class SkyMatch:
    """Pairs of rows, and the rows that were near the same star but were not paired.

    Attributes:
        left, right: (k,) row numbers; no row occurs twice on either side.
        separation: (k,) arcsec.
        duplicates: (m, 2) row numbers (left, right) of left rows whose nearest right row is paired with a
            nearer left row.
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
    """Pair each left row with its nearest right row within `radius` arcsec, and each right row at most once.

    Of several left rows near one right row, the nearest is paired. Positions are in degrees; rows with NaN
    are not matched. Proper motion between epochs is not applied.

    Raises:
        DataError: coordinates differ in length, or declinations exceed 90 degrees.
    """
    left, left_rows = _positions(left_ra, left_dec)
    right, right_rows = _positions(right_ra, right_dec)
    if not len(left_rows) or not len(right_rows):
        none = np.zeros(0, dtype=np.int64)
        return SkyMatch(left=none, right=none, separation=np.zeros(0), duplicates=none.reshape(0, 2))
    nearest, separation, _ = left.match_to_catalog_sky(right)
    arcsec = np.asarray(separation.to_value(units.arcsec))
    close = np.flatnonzero(arcsec <= radius)
    # In order of separation, the first left row of each right row is the nearest; ties stay in row order.
    close = close[np.lexsort((close, arcsec[close]))]
    _, first = np.unique(nearest[close], return_index=True)
    paired = np.sort(close[first])
    unpaired = np.sort(np.setdiff1d(close, paired))
    return SkyMatch(
        left=left_rows[paired],
        right=right_rows[nearest[paired]],
        separation=arcsec[paired],
        duplicates=np.stack([left_rows[unpaired], right_rows[nearest[unpaired]]], axis=1),
    )


def match_catalogue(spectra: Spectra, labels: Table, radius: float = RADIUS) -> SkyMatch:
    """Match spectra (left) to a table (right) by ra and dec in degrees, columns of `meta` and of the table.

    Raises:
        DataError: one side has no positions.
    """
    for name, columns in (("spectra", spectra.meta), ("labels", labels.columns)):
        missing = [key for key in ("ra", "dec") if key not in columns]
        if missing:
            raise DataError(f"the {name} have no {' and no '.join(missing)} to match on the sky")
        if not (np.isfinite(columns["ra"]) & np.isfinite(columns["dec"])).any():
            raise DataError(f"the {name} have no known position (ra, dec) to match on the sky")
    return match(spectra.meta["ra"], spectra.meta["dec"], labels["ra"], labels["dec"], radius)


def _positions(ra: Any, dec: Any) -> tuple[SkyCoord, IntArray]:
    """Return the finite coordinates and their row numbers."""
    ra, dec = (np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan) for values in (ra, dec))
    if ra.shape != dec.shape or ra.ndim != 1:
        raise DataError(f"right ascensions {ra.shape} and declinations {dec.shape} differ in shape")
    rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if (np.abs(dec[rows]) > 90).any():
        raise DataError("declinations exceed 90 degrees: are right ascension and declination swapped?")
    return SkyCoord(ra[rows], dec[rows], unit="deg"), rows
