"""Reader of LAMOST low-resolution spectra.

They cover 3700-9100 A in vacuum, heliocentric, with pixels of 1e-4 in log10 wavelength and R about 1800.
Files have three layouts: an image of five rows in the primary HDU (DR1 to DR9), the same with
continuum-subtracted flux in place of wavelengths (pilot survey), and a table COADD of one row (DR10 and
later).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from specjax.errors import DataError
from specjax.spectra import Spectra
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.many import read_folder
from specjax.surveys.io.sniff import FitsContents, fits_files, look, stem
from specjax.typing import FloatArray

_KIND = "a LAMOST spectrum"
_ROWS = ("flux", "ivar", "wavelength", "andmask")
_NUMBERS = {"ra": "RA", "dec": "DEC", "redshift": "Z", "redshift_err": "Z_ERR"}
_TEXTS = {
    "obsid": "OBSID",
    "object": "OBJNAME",
    "class": "CLASS",
    "subclass": "SUBCLASS",
    "release": "DATA_V",
}
_UNKNOWN = -9999.0
_MAX_OFFSET = 0.1  # pixels between wavelengths and the header's coefficients; single precision gives 0.003


def recognise(path: Path) -> bool:
    """Whether `path` is a LAMOST file or a folder of them."""
    return any(_is_lamost(file) for file in look(path))


def read(path: Path) -> Spectra:
    """Read a LAMOST file, or all files of a folder; for unreadable files see `io.many.read_each`.

    A pixel is masked where `andmask` is not 0, whatever the bit: every exposure was flagged bad, and the
    co-addition has no good data there. `ormask`, set where at least one exposure was bad, is not used: the
    other exposures are good, and the inverse variance accounts for it. Pixels without positive inverse
    variance are masked too. Wavelengths are computed from COEFF0 and COEFF1, which the pilot survey requires
    and which are exact where the wavelengths of a file are rounded to 0.003 A.

    Returns:
        Spectra in vacuum, with the flux in the relative units of the files. ids are file names without
        .fits.gz; meta: obsid, object, class, subclass, release, ra, dec (degrees), redshift, redshift_err,
        snr_u, snr_g, snr_r, snr_i, snr_z, snr (equal to snr_g), file; NaN or "" where unknown.

    Raises:
        DataError: there are no files, or none can be read.
    """
    return read_folder(path, fits_files(Path(path)), read_file, _KIND)


def read_file(path: Path) -> Spectra:
    """Read one LAMOST file, see `read`.

    Raises:
        DataError: the file is damaged, not from LAMOST, or inconsistent.
    """
    with open_fits(path, _KIND) as hdus:
        header = hdus[0].header
        columns = _table(path, hdus) if hdus[0].data is None else _image(path, hdus)
    wavelength = _wavelength(path, header, columns["wavelength"])
    try:
        return Spectra.build(
            wavelength,
            columns["flux"],
            columns["ivar"],
            columns["andmask"],
            [stem(path)],
            meta={**{key: [value] for key, value in _meta(header).items()}, "file": [path.name]},
            medium="air" if header.get("VACUUM") is False else "vacuum",
            survey="lamost",
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _is_lamost(file: FitsContents) -> bool:
    return str(file.header.get("TELESCOP", "")).strip() == "LAMOST"


def _image(path: Path, hdus: fits.HDUList) -> dict[str, FloatArray]:
    data = np.asarray(hdus[0].data, dtype=np.float64)
    if data.ndim != 2 or len(data) < len(_ROWS):
        raise DataError(f"{path} is not {_KIND}: its image is {data.shape}, not five rows")
    return dict(zip(_ROWS, data, strict=False))


def _table(path: Path, hdus: fits.HDUList) -> dict[str, FloatArray]:
    if len(hdus) < 2 or not hasattr(hdus[1], "columns"):
        raise DataError(f"{path} is not {_KIND}: no image in HDU 0 and no table in HDU 1")
    names = {name.lower(): name for name in hdus[1].columns.names}
    missing = [row.upper() for row in _ROWS if row not in names]
    if missing:
        raise DataError(f"{path} is not {_KIND}: its table has no column {', '.join(missing)}")
    return {row: np.asarray(hdus[1].data[names[row]], dtype=np.float64).ravel() for row in _ROWS}


def _wavelength(path: Path, header: Mapping[str, Any], given: FloatArray) -> FloatArray:
    """Compute (p,) wavelengths in Angstrom from the header, and compare them with the file's own, if any."""
    has_wavelength = bool(np.isfinite(given).all()) and given.min() > 3000 and (np.diff(given) > 0).all()
    if "COEFF0" not in header or "COEFF1" not in header:
        if not has_wavelength:
            raise DataError(f"{path} is not {_KIND}: neither COEFF0 and COEFF1 nor wavelengths")
        return given
    first, step = _number(header["COEFF0"]), _number(header["COEFF1"])
    if not (3 < first < 5 and step > 0):
        raise DataError(
            f"{path}: COEFF0 {header['COEFF0']} and COEFF1 {header['COEFF1']} are not log10 wavelengths"
        )
    wavelength = np.power(10.0, first + step * np.arange(given.size, dtype=np.float64))
    if has_wavelength:
        offset = np.abs(given / wavelength - 1.0).max() / (step * np.log(10.0))
        if offset > _MAX_OFFSET:
            raise DataError(f"{path}: its wavelengths are {offset:.1f} pixels from its COEFF0 and COEFF1")
    return wavelength


def _meta(header: Mapping[str, Any]) -> dict[str, Any]:
    snr = {f"snr_{band}": _number(header.get(f"SNR{band}", header.get(f"SN_{band}"))) for band in "ugriz"}
    return {
        **{key: str(header.get(card, "")).strip() for key, card in _TEXTS.items()},
        **{key: _number(header.get(card)) for key, card in _NUMBERS.items()},
        **snr,
        "snr": snr["snr_g"],
    }


def _number(card: Any) -> float:
    """Return a header value as a number; NaN if it is absent, -9999 or not a number."""
    try:
        value = float(card)
    except (TypeError, ValueError):
        return np.nan
    return np.nan if value == _UNKNOWN else value
