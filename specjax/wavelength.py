"""Wavelengths: the grids of the models, units, air and vacuum, and gaps in a grid."""

import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import DataError
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray

LAMOST_WAVELENGTH: FloatArray = np.power(10.0, 3.602 + 1e-4 * np.arange(1462, dtype=np.float64))
"""(1462,) vacuum Angstrom: the grid of the LAMOST tower, 4000 to 5599 A."""

GAIA_XP_WAVELENGTH: FloatArray = np.arange(3360, 10201, 20, dtype=np.float64)
"""(343,) vacuum Angstrom: the grid of the Gaia XP tower, 336 to 1020 nm every 2 nm."""

MODEL_GRIDS = {"lamost": LAMOST_WAVELENGTH, "gaia_xp": GAIA_XP_WAVELENGTH}

_GAP = 5.0  # a step in wavelength over the larger of the two adjacent steps
_ANGSTROM_PER_UNIT = {"angstrom": 1.0, "nm": 10.0, "um": 1e4}


def air_to_vacuum(wavelength: ArrayLike) -> FloatArray:
    """Convert air wavelengths in Angstrom, of any shape, to vacuum with wcslib.

    The wavelengths are pixel coordinates along an axis that is linear in air wavelength, which the
    transformation "WAVE-A2W" (Greisen et al. 2006, A&A 446, 747, section 4) converts to vacuum. It agrees
    with Ciddor (1996) to 5 m/s from 2500 to 11000 A.
    """
    from astropy.wcs import WCS  # here, so that the container itself needs no astropy

    air = np.asarray(wavelength, dtype=np.float64)
    axis = WCS(naxis=1)
    axis.wcs.ctype, axis.wcs.cunit = ["AWAV"], ["m"]
    axis.wcs.crpix, axis.wcs.crval, axis.wcs.cdelt = [1.0], [5000e-10], [1e-10]
    axis.wcs.set()
    axis.wcs.sptr("WAVE-A2W")
    vacuum = axis.wcs_pix2world(air.ravel() - 5000.0, 0)[0]
    return np.reshape(vacuum * 1e10, air.shape)


def in_angstrom(grid: FloatArray, unit: str | None) -> FloatArray:
    """Convert wavelengths from "angstrom", "nm", "um" or "log10" (of Angstrom).

    Raises:
        DataError: an unknown unit, or, if `unit` is None, wavelengths that cannot be optical in Angstrom.
    """
    if unit == "log10":
        return 10.0**grid
    if unit is not None:
        if unit not in _ANGSTROM_PER_UNIT:
            raise DataError(f"wavelength unit {unit!r} is not one of angstrom, nm, um, log10")
        return grid * _ANGSTROM_PER_UNIT[unit]
    top = float(np.nanmax(grid)) if np.isfinite(grid).any() else np.inf
    if top < 3000:
        likely = "um" if top < 3 else "log10" if 3.3 < top < 4.7 else "um" if top < 30 else "nm"
        low = float(np.nanmin(grid))
        raise DataError(
            f"wavelengths run from {low:g} to {top:g}, which is not optical in Angstrom: "
            f"if they are in {likely}, say wavelength unit {likely!r} (--wavelength-unit {likely})"
        )
    return grid


def find_gaps(grid: FloatArray, used: BoolArray) -> IntArray:
    """Return the indices of pixels before a gap, except gaps between two unused pixels."""
    step = np.diff(grid)
    if step.size < 10 or not (step > 0).all():
        return np.zeros(0, dtype=np.int64)
    wide = step[1:-1] > _GAP * np.maximum(step[:-2], step[2:])
    return np.flatnonzero(wide & (used[1:-2] | used[2:-1])) + 1


def fill_gaps(grid: FloatArray, gaps: IntArray, *arrays: AnyArray) -> tuple[FloatArray, list[AnyArray]]:
    """Insert two pixels into each gap of the grid, and zeros (no information) into the (n, p) arrays."""
    first, second = 2 * grid[gaps] - grid[gaps - 1], 2 * grid[gaps + 1] - grid[gaps + 2]
    at = np.repeat(gaps + 1, 2)
    wider = np.insert(grid, at, np.stack([first, second], axis=1).ravel())
    return wider, [np.insert(array, at, 0, axis=1) for array in arrays]


def check_wavelength(grid: FloatArray) -> None:
    """Require wavelengths (p,) or (n, p) that are finite, positive and strictly increasing.

    Raises:
        DataError: they are not.
    """
    if not np.isfinite(grid).all() or (grid <= 0).any():
        count = int((~np.isfinite(grid) | (grid <= 0)).sum())
        raise DataError(f"{count} wavelengths are not finite and positive")
    step = np.diff(grid, axis=-1)
    if (step == 0).any():
        count, first = int((step == 0).sum()), float(grid[..., :-1][step == 0][0])
        raise DataError(f"{count} wavelengths occur twice, the first at {first:.3f} A")
    if (step < 0).any():
        raise DataError("wavelengths are not increasing; Spectra.build sorts them")


def columns_between(wavelength: FloatArray, low: float, high: float) -> slice:
    """Return the pixel columns in which any grid, (p,) or (n, p), lies from `low` to `high` Angstrom."""
    inside = np.atleast_2d((wavelength >= low) & (wavelength <= high)).any(axis=0)
    columns = np.flatnonzero(inside)
    return slice(int(columns[0]), int(columns[-1]) + 1) if columns.size else slice(0, 0)


def widened(part: slice, margin: int) -> slice:
    """Return pixel columns, at least two of them, and `margin` more on either side if there are as many."""
    return slice(max(part.start - margin, 0), max(part.stop, 2) + margin)


def extend(grid: FloatArray, count: int, width: int) -> FloatArray:
    """Return (count, width) wavelengths, continued with the last step under the padding."""
    rows = np.broadcast_to(grid, (count, grid.shape[-1]))
    steps = np.arange(1, width - rows.shape[1] + 1)
    tail = rows[:, -1:] + (rows[:, -1:] - rows[:, -2:-1]) * steps
    return np.concatenate([rows, tail], axis=1)
