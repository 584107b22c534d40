"""Reader of SDSS and BOSS spec-lite files.

They cover 3600-10400 A in vacuum, heliocentric, with pixels of 1e-4 in log10 wavelength.
"""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.many import read_folder
from specjax.surveys.io.sniff import fits_files, look, stem
from specjax.typing import AnyArray

_KIND = "an SDSS spec-lite file"
_NEEDED = ("flux", "loglam", "ivar")
_NUMBERS = {"redshift": "Z", "redshift_err": "Z_ERR", "snr": "SN_MEDIAN_ALL"}
_TEXTS = {"class": "CLASS", "subclass": "SUBCLASS"}


def recognise(path: Path) -> bool:
    """Whether `path` is a spec-lite file or a folder of them."""
    return any(set(_NEEDED) <= {name.lower() for name in file.columns} for file in look(path))


def read(path: Path) -> Spectra:
    """Read a file, or all files of a folder; for unreadable files see `io.many.read_each`.

    A pixel is masked where `and_mask` (bad in every exposure) is not 0 or the inverse variance not positive.

    Returns:
        Spectra in vacuum, in 1e-17 erg/s/cm2/A. ids are file names without .fits; meta: ra, dec (degrees),
        redshift, redshift_err, zwarn (-1 if unknown), snr (median per pixel), class, subclass, file.

    Raises:
        DataError: there are no files, or none can be read.
    """
    return read_folder(path, fits_files(Path(path)), read_file, _KIND)


def read_file(path: Path) -> Spectra:
    """Read one spec-lite file, see `read`.

    Raises:
        DataError: the file is damaged or has another layout.
    """
    with open_fits(path, _KIND, odd_cards=True) as hdus:
        table = _table(hdus, 1)
        missing = [name for name in _NEEDED if name not in table]
        if missing:
            raise DataError(f"{path} is not {_KIND}: HDU 1 has no column {', '.join(missing)}")
        meta = _meta(hdus[0].header, _table(hdus, 2))
    try:
        return Spectra.build(
            table["loglam"],
            table["flux"],
            table["ivar"],
            table.get("and_mask"),
            [stem(path)],
            meta={**{key: [value] for key, value in meta.items()}, "file": [path.name]},
            survey="sdss",
            unit="log10",
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _table(hdus: fits.HDUList, number: int) -> dict[str, AnyArray]:
    """Return the columns of an HDU by lower-case name; none if it is absent or not a table."""
    if len(hdus) <= number or not hasattr(hdus[number], "columns"):
        return {}
    data = hdus[number].data
    return {name.lower(): np.asarray(data[name]) for name in data.names}


def _meta(header: fits.Header, catalogue: dict[str, AnyArray]) -> dict[str, Any]:
    """Return the object's metadata from the header and the single row of the catalogue."""
    row = {name.upper(): values[0] for name, values in catalogue.items() if len(values)}
    ra = header.get("PLUG_RA", row.get("PLUG_RA", np.nan))
    dec = header.get("PLUG_DEC", row.get("PLUG_DEC", np.nan))
    return {
        "ra": float(ra),
        "dec": float(dec),
        **{key: float(row.get(name, np.nan)) for key, name in _NUMBERS.items()},
        "zwarn": int(row.get("ZWARNING", -1)),
        **{key: str(row.get(name, "")).strip() for key, name in _TEXTS.items()},
    }
