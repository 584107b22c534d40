"""MaStar: 65 mean spectra of groups of like stars (mastarhc_v2), 3632-10323 A in vacuum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from specjax.errors import DataError
from specjax.spectra import Spectra


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of mean MaStar spectra."""
    return path.is_dir() and any(path.glob("MaStarHC_*.fits.gz"))


def read(folder: Path) -> Spectra:
    """Every mean MaStar spectrum of a folder.

    Returns:
      Spectra in vacuum on one logarithmic grid, ids such as "MaStarHC_00", meta name; they have no labels.
      Pixels with zero inverse variance are masked.

    Raises:
      DataError: no spectra, or a file that is not as these files are.
    """
    folder = Path(folder)
    files = sorted(folder.glob("MaStarHC_*.fits.gz"))
    if not files:
        raise DataError(f"{folder} holds no mean MaStar spectra (MaStarHC_*.fits.gz)")
    return Spectra.concatenate([_read_file(path) for path in files])


def _read_file(path: Path) -> Spectra:
    try:
        with fits.open(path, memmap=False) as hdus:
            header, flux = hdus[0].header, np.asarray(hdus[0].data, dtype=np.float64)
            ivar = np.asarray(hdus["IVAR"].data, dtype=np.float64)
            first, step, pixel = (float(header[key]) for key in ("CRVAL1", "CDELT1", "CRPIX1"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a mean MaStar spectrum: {error}") from None
    name = path.name.removesuffix(".fits.gz")
    return Spectra.build(
        first + step * (np.arange(flux.size) + 1.0 - pixel),
        flux,
        ivar,
        id=[name],
        meta={"name": [name], **{key: [np.nan] for key in ("teff", "logg", "fe_h")}},
        medium="vacuum",
        survey="mastarhc_v2",
        unit="log10",
    )
