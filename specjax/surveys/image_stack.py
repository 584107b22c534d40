"""Reader of FITS files with spectra as images: HDUs FLUX, WAVE or WAVELENGTH, optionally IVAR and MASK."""

from pathlib import Path

import numpy as np

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.sniff import look, stem

_KIND = "a FITS file with images FLUX and WAVE"
_GRIDS = ("WAVE", "WAVELENGTH")


def recognise(path: Path) -> bool:
    """Whether `path` is a file with such HDUs."""
    return path.is_file() and any("FLUX" in file.names and _grid(file.names) for file in look(path))


def read(path: Path) -> Spectra:
    """Read the rows of FLUX, (n, p) or (p,), on a grid in Angstrom in vacuum; ids are FILE or FILE-ROW.

    Raises:
        DataError: the file has another layout, or its images do not fit each other.
    """
    path = Path(path)
    with open_fits(path, _KIND, odd_cards=True) as hdus:
        images = {hdu.name.upper(): hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None}
        grid = _grid(tuple(images))
        if "FLUX" not in images or grid is None:
            raise DataError(f"{path} is not {_KIND}: it has {', '.join(images) or 'no images'}")
        count = len(np.atleast_2d(images["FLUX"]))
    name = stem(path)
    ids = [name] if count == 1 else [f"{name}-{row}" for row in range(count)]
    try:
        return Spectra.build(
            images[grid], images["FLUX"], images.get("IVAR"), images.get("MASK"), ids, survey=name
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _grid(names: tuple[str, ...]) -> str | None:
    return next((name for name in _GRIDS if name in names), None)
