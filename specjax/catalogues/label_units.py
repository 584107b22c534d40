"""Conversion of label columns that declare a unit to the units of `specjax.units`."""

from typing import Any

import astropy.units as u
import numpy as np

from specjax.errors import DataError
from specjax.typing import FloatArray
from specjax.units import label_unit

_LOGARITHMS = ("dex", "log", "[")  # how catalogues begin the unit of log g or of an abundance
_NO_UNIT = ("", "-", "--", "---", "none", "unitless", "dimensionless")


def to_own_unit(name: str, values: FloatArray, unit: Any, what: str) -> FloatArray:
    """Return a label or its error (n,) in the unit that specjax uses for it.

    A column without a unit, or whose name is not that of a label, is returned as it is. For log g and
    abundances, dex, the logarithm of any unit and no dimension at all mean the same.

    Args:
        name: of the column, such as teff or fe_h_err.
        values: (n,) its values.
        unit: its unit, None if it declares none.
        what: the subject of the error message: "t.fits: column teff".

    Raises:
        DataError: the unit cannot be converted.

    >>> to_own_unit("teff", np.array([5.777]), u.kK, "column teff")
    array([5777.])
    """
    own = label_unit(name)
    if own is None or unit is None or str(unit) in (*_NO_UNIT, own):
        return values
    if own == "dex":
        if not str(unit).startswith(_LOGARITHMS):
            raise _refused(what, unit, own)
        return values
    try:
        return np.asarray(u.Unit(unit).to(u.Unit(own), values), np.float64)
    except (u.UnitsError, TypeError, ValueError):
        raise _refused(what, unit, own) from None


def _refused(what: str, unit: Any, own: str) -> DataError:
    return DataError(
        f"{what} is in {unit}, which cannot be converted to {own}: convert it, or correct the unit"
    )
