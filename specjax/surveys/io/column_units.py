"""Units of columns and axes in files, which texts of many origins name."""

import re
import warnings
from pathlib import Path
from typing import Any

from astropy import units as u
from astropy.units.function import FunctionUnitBase

from specjax.errors import DataError

_NONE = ("", "none", "pixel", "relative", "arbitrary", "unitless", "dimensionless")
_ANGSTROM = ("angstrom", "ang", "a", "aa")
# In texts that astropy does not know: magnitudes, logarithms, flux per frequency and photons.
_OTHER_SHAPE = re.compile(r"mag|log|dex|\bdb\b|hz|jy|f_?nu|phot")
_NAMES = {"angstrom": u.AA, "nm": u.nm, "um": u.um}


def known_unit(path: Path, text: Any) -> Any:
    """Return the unit that a file names; None for none, and for one that astropy does not know.

    Flux in an unknown unit is taken as it is, as a factor changes nothing; but not if the unit seems to be
    one of another shape, such as magnitudes.

    Args:
        path: the file, for the message.
        text: a text or a unit; None for none.

    Raises:
        DataError: a logarithmic unit, or an unknown one that seems to be of another shape.
    """
    name = "" if text is None else str(text).strip()
    if name.lower() in _NONE:
        return None
    if name.lower().rstrip("s") in _ANGSTROM:
        return u.AA
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", u.UnitsWarning)  # of several slashes, as in most files
        unit = u.Unit(name, parse_strict="silent")
    if isinstance(unit, FunctionUnitBase):
        raise DataError(f"{path}: {name} is a logarithmic unit: convert to linear values")
    if isinstance(unit, u.UnrecognizedUnit):
        if _OTHER_SHAPE.search(name.lower()):
            raise DataError(
                f"{path}: the unit {name!r} is not known, and seems to be of magnitudes, photons or flux per"
                " frequency: convert the flux to one per wavelength"
            )
        return None
    if u.beam in unit.bases:  # flux of whatever the beam holds
        unit = unit * u.beam ** -unit.powers[unit.bases.index(u.beam)]
    return None if unit == u.one else unit


def name_of(unit: Any) -> str:
    """Return a unit of wavelength by the name that the option has for it, if there is one.

    >>> name_of(u.nm), name_of(u.Unit("micron")), name_of(u.GHz)
    ('nm', 'um', 'GHz')
    """
    return next((name for name, known in _NAMES.items() if unit == known), str(unit))
