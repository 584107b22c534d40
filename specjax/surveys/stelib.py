"""Reader of the STELIB library: 255 spectra, 3200-9900 A in air, 1 A pixels, FWHM about 3 A, rest frame.

Le Borgne et al. (2003).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import linear_axis, open_fits

FWHM = 3.0
"""Approximate spectral resolution in Angstrom."""

_PREFIX = "STELIB_v3.2_"
_PATTERN = f"{_PREFIX}*.fits"
_LABELS = {"teff": "TEFF", "logg": "LOG_G", "fe_h": "FE_H", "radial_velocity": "RADVEL"}


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of STELIB files."""
    return path.is_dir() and any(path.glob(_PATTERN))


def read(folder: Path) -> Spectra:
    """Read all STELIB spectra of a folder.

    Each file has its own grid, so wavelengths are (n, p). Gaps are filled with zeros in the files; these
    pixels are masked. One star, HD 053929, was observed with both telescopes and occurs twice.

    Returns:
        Spectra in air without uncertainties. ids have the form "HD053929lp"; meta: name, teff (K), logg
        (dex), fe_h (dex), radial_velocity (km/s, already removed from the spectrum), telescope, file; NaN
        where unknown. Positions are not read: the headers give them for several epochs and in several
        notations.

    Raises:
        DataError: there are no spectra, or a file is damaged.
    """
    folder = Path(folder)
    files = sorted(folder.glob(_PATTERN))
    if not files:
        raise DataError(f"{folder} contains no STELIB spectra ({_PATTERN})")
    return Spectra.concatenate([_read_file(path) for path in files])


def _read_file(path: Path) -> Spectra:
    # Blank cards and an unquoted '1 0' for APNUM1 are normal in these headers, not damage.
    with open_fits(path, "a STELIB spectrum", odd_cards=True) as hdus:
        header, flux = hdus[0].header, np.asarray(hdus[0].data, dtype=np.float64)
        wavelength = linear_axis(header, flux.size)
        labels = {key: _number(header.get(card)) for key, card in _LABELS.items()}
        telescope = str(header.get("TELESCOP", "")).strip()
    star = path.stem.removeprefix(_PREFIX)
    return Spectra.build(
        wavelength,
        flux,
        mask=flux == 0,
        id=[star],
        meta={
            "name": [re.sub(r"(?<=\d)(lp|ss)$", "", star)],  # La Palma or Siding Spring
            **{key: [value] for key, value in labels.items()},
            "telescope": [telescope],
            "file": [path.name],
        },
        medium="air",
        survey="stelib",
    )


def _number(card: Any) -> float:
    """Return a header value as a number; NaN for '-       ', which the files write for unknown."""
    text = str(card).strip()
    return np.nan if card is None or text in ("", "-") else float(text)
