"""Reader of mean MaStar spectra: 65 averages of similar stars (mastarhc_v2), 3632-10323 A in vacuum."""

from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import linear_axis, open_fits

_PATTERN = "MaStarHC_*.fits.gz"


def recognise(path: Path) -> bool:
    """Whether `path` is a folder of mean MaStar spectra."""
    return path.is_dir() and any(path.glob(_PATTERN))


def read(folder: Path) -> Spectra:
    """Read all mean MaStar spectra of a folder.

    Returns:
        Spectra in vacuum on one logarithmic grid, with pixels of zero inverse variance masked. ids are
        file names without .fits.gz ("MaStarHC_00"); meta: name, file, and teff, logg, fe_h, which are NaN.

    Raises:
        DataError: there are no spectra, or a file is damaged.
    """
    folder = Path(folder)
    files = sorted(folder.glob(_PATTERN))
    if not files:
        raise DataError(f"{folder} contains no mean MaStar spectra ({_PATTERN})")
    return Spectra.concatenate([_read_file(path) for path in files])


def _read_file(path: Path) -> Spectra:
    with open_fits(path, "a mean MaStar spectrum") as hdus:
        flux = np.asarray(hdus[0].data, dtype=np.float64)
        ivar = np.asarray(hdus["IVAR"].data, dtype=np.float64)
        wavelength = linear_axis(hdus[0].header, flux.size)
    name = path.name.removesuffix(".fits.gz")
    return Spectra.build(
        wavelength,
        flux,
        ivar,
        id=[name],
        meta={"name": [name], "file": [path.name], **{key: [np.nan] for key in ("teff", "logg", "fe_h")}},
        medium="vacuum",
        survey="mastarhc_v2",
        unit="log10",
    )
