"""STELIB: 255 spectra, 3200-9900 A in air, 1 A, FWHM about 3 A, at rest (Le Borgne et al. 2003)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import linear_axis, open_fits

FWHM = 3.0
"""Spectral resolution in Angstrom, about."""

_PREFIX = "STELIB_v3.2_"
_LABELS = {"teff": "TEFF", "logg": "LOG_G", "fe_h": "FE_H", "radial_velocity": "RADVEL"}


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of STELIB files."""
    return path.is_dir() and any(path.glob(f"{_PREFIX}*.fits"))


def read(folder: Path) -> Spectra:
    """Every STELIB spectrum of a folder.

    Every file has its own grid, so wavelengths are (n, p). Gaps are filled with zeros in the files: those
    pixels are masked. One star, HD 053929, was observed with both telescopes and is there twice.

    Returns:
      Spectra in air with ids such as "HD053929lp" and meta name, teff (K), logg (dex), fe_h (dex),
      radial_velocity (km/s, of the star; already taken out), telescope, file; NaN where unknown. The files
      have no uncertainties, and positions of several epochs in several notations, which are left.

    Raises:
      DataError: no spectra, or a file that is not as STELIB files are.
    """
    folder = Path(folder)
    files = sorted(folder.glob(f"{_PREFIX}*.fits"))
    if not files:
        raise DataError(f"{folder} holds no STELIB spectra ({_PREFIX}*.fits)")
    return Spectra.concatenate([_read_file(path) for path in files])


def _read_file(path: Path) -> Spectra:
    # Blank cards and an unquoted '1 0' for APNUM1 are how these headers are, not damage.
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
    """A header value as a number; the files write '-       ' for unknown."""
    text = str(card).strip()
    return np.nan if card is None or text in ("", "-") else float(text)
