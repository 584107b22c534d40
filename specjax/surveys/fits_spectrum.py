"""Reader of FITS files of no particular survey: a table of wavelength and flux, or an image of a spectrum.

A table has columns such as WAVE, FLUX and IVAR or ERROR, with one row per pixel, or one row per spectrum and
arrays in its cells. An image has the wavelengths in its header: CRVAL1, CRPIX1 and CDELT1 or CD1_1, linear or
logarithmic.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits

from specjax.errors import DataError
from specjax.pixels import inverse_variance
from specjax.spectra import Spectra
from specjax.surveys.io.column_names import LOG, by_role, medium_of
from specjax.surveys.io.column_units import known_unit, name_of
from specjax.surveys.io.fits import open_fits
from specjax.surveys.io.many import assume_medium, assumed_unit
from specjax.surveys.io.sniff import is_fits, stem

_KIND = "a FITS file with a spectrum"
_NEEDED = ("wavelength", "flux")
_AXIS_CARDS = ("CTYPE1", "CUNIT1", "CRVAL1", "CDELT1", "CD1_1")
_MEDIA = {"air": "air", "vacuum": "vacuum", "vac": "vacuum"}
_LONGEST = 6  # columns or HDUs that an error lists


def recognise(path: Path) -> bool:
    """Whether `path` is a FITS file with such a table or image."""
    if not (path.is_file() and is_fits(path)):
        return False
    try:
        with open_fits(path, _KIND, odd_cards=True, check=False) as hdus:
            return any(_is_table(hdu) or _is_spectrum(hdu) for hdu in hdus)
    except DataError:
        return False


def read(path: Path, wavelength_medium: str | None = None, wavelength_unit: str | None = None) -> Spectra:
    """Read the spectra of one file.

    Units of columns are honoured, those of flux densities per frequency too (see `Spectra.build`). The medium
    is that of AIRORVAC, VACUUM or CTYPE1 (AWAV is air), of the name of the column, such as WAVE_AIR, or of
    the comments on the axis or the column, such as "air wavelength".

    Args:
        path: a FITS file, may be gzipped.
        wavelength_medium: "vacuum" or "air", if the file does not say; default vacuum.
        wavelength_unit: "angstrom", "nm", "um" or "log10", if the file does not say; default Angstrom.

    Returns:
        Spectra whose ids are a column id, name or object of several rows, else FILE or FILE-ROW; meta: ra,
        dec in degrees, if the header has them as numbers.

    Raises:
        DataError: the file has another layout or is damaged, its spectra cannot be used, or the medium or the
            unit contradicts it.
    """
    path = Path(path)
    with open_fits(path, _KIND, odd_cards=True) as hdus:
        hdu = _with_spectra(hdus)
        if hdu is None:
            raise DataError(f"{path} is {describe(path)}, not {_KIND}")
        found = _from_table(path, hdu) if _is_table(hdu) else _from_image(path, hdu, hdus)
        header, declared = _header(hdus, hdu), {"medium": _medium(hdus, hdu), "unit": found.pop("unit")}
    quantity = getattr(found["wavelength"], "unit", None)
    if quantity is not None:
        declared["unit"] = name_of(quantity)
    for key, wanted in (("medium", wavelength_medium), ("unit", wavelength_unit)):
        if wanted is not None and declared[key] not in (None, wanted):
            raise DataError(f"{path} declares that its wavelength {key} is {declared[key]}, not {wanted}")
    count = len(found["id"])
    unit = wavelength_unit or declared["unit"] or assumed_unit()
    try:
        return Spectra.build(
            **found,
            meta={name: np.full(count, value) for name, value in _position(header).items()},
            medium=declared["medium"] or wavelength_medium or assume_medium(path),
            survey=stem(path),
            unit=unit if quantity is None else None,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def declares_medium(path: Path) -> bool:
    """Return whether a file says what its wavelengths are in; False if it cannot be read."""
    try:
        with open_fits(path, _KIND, odd_cards=True, check=False) as hdus:
            hdu = _with_spectra(hdus)
            return hdu is not None and _medium(hdus, hdu) is not None
    except DataError:
        return False


def describe(path: Path) -> str:
    """Describe the contents of a FITS file of no known layout, for an error."""
    try:
        with open_fits(path, _KIND, odd_cards=True, check=False) as hdus:
            parts = [_describe_hdu(number, hdu) for number, hdu in enumerate(hdus)]
    except DataError:
        return "a FITS file that cannot be read"
    parts = [part for part in parts if part]
    return f"a FITS file with {'; '.join(parts[:_LONGEST]) or 'no data'}"


def _describe_hdu(number: int, hdu: Any) -> str:
    if hasattr(hdu, "columns"):
        names = hdu.columns.names
        more = ", ..." if len(names) > _LONGEST else ""
        return f"HDU {number} a table of {', '.join(names[:_LONGEST])}{more}"
    shape = getattr(hdu, "shape", ())
    axis = "" if _has_axis(hdu.header) else " without a wavelength axis in the header (CRVAL1, CDELT1)"
    return f"HDU {number} an image {' x '.join(map(str, shape[::-1]))}{axis}" if shape else ""


def _is_table(hdu: Any) -> bool:
    return hasattr(hdu, "columns") and all(role in by_role(hdu.columns.names) for role in _NEEDED)


def _is_spectrum(hdu: Any) -> bool:
    """Return whether an HDU is an image (p,), (1, p) or the like with a wavelength axis."""
    shape: tuple[int, ...] = getattr(hdu, "shape", ()) if hdu.is_image else ()
    return bool(shape) and _has_axis(hdu.header) and math.prod(shape) == shape[-1] > 1


def _with_spectra(hdus: fits.HDUList) -> Any:
    """Return the first table with spectra, or else the first image of one; None if there is neither."""
    tables = (hdu for hdu in hdus if _is_table(hdu))
    images = (hdu for hdu in hdus if _is_spectrum(hdu))
    return next(tables, None) or next(images, None)


def _has_axis(header: Mapping[str, Any]) -> bool:
    return "CRVAL1" in header and ("CDELT1" in header or "CD1_1" in header)


def _from_table(path: Path, hdu: Any) -> dict[str, Any]:
    """Return the arguments of `Spectra.build` from a table; unit is what the name of a column declares."""
    roles = by_role(hdu.columns.names)
    name = roles["wavelength"].lower()
    columns = {
        role: _column(path, hdu, column, has_unit=not (role == "wavelength" and name in LOG))
        for role, column in roles.items()
        if role != "id"
    }
    wavelength, flux = columns["wavelength"], columns["flux"]
    count = len(flux) if flux.ndim == 2 else 1
    ids = hdu.data[roles["id"]] if "id" in roles and count > 1 and len(hdu.data) == count else None
    return {
        "wavelength": wavelength,
        "flux": flux,
        "ivar": columns.get("ivar", _ivar(columns.get("error"), flux)),
        "mask": columns.get("mask"),
        "id": _ids(path, count) if ids is None else np.char.strip(np.asarray(ids).astype(np.str_)),
        "unit": "log10" if name in LOG else None,
    }


def _column(path: Path, hdu: Any, name: str, *, has_unit: bool) -> Any:
    """Return a column (p,) or (n, p) as an array, or as a quantity if it has a unit that astropy knows."""
    data, text = np.asarray(hdu.data[name]), hdu.columns[name].unit if has_unit else None
    if data.dtype.kind not in "biuf":
        raise DataError(f"{path}: column {name} does not hold numbers, or arrays of different lengths")
    data = data[:, 0] if data.ndim == 2 and data.shape[1] == 1 else data
    unit = known_unit(path, text)
    return data if unit is None else u.Quantity(data, unit)


def _from_image(path: Path, hdu: Any, hdus: fits.HDUList) -> dict[str, Any]:
    """Return the arguments of `Spectra.build` from an image, and the unit that it declares."""
    flux, header = np.squeeze(hdu.data), hdu.header
    wavelength, unit = _axis(path, header, flux.size)
    images = {
        one.name.lower(): one for one in hdus if one.is_image and one.data is not None and one is not hdu
    }
    roles = {role: np.squeeze(images[name].data) for role, name in by_role(tuple(images)).items()}
    roles = {role: values for role, values in roles.items() if values.shape == flux.shape}
    if (density := known_unit(path, header.get("BUNIT"))) is not None:
        flux = u.Quantity(flux, density)
    return {
        "wavelength": wavelength,
        "flux": flux,
        "ivar": roles.get("ivar", _ivar(roles.get("error"), flux)),
        "mask": roles.get("mask"),
        "id": _ids(path, 1),
        "unit": unit,
    }


def _axis(path: Path, header: Mapping[str, Any], pixels: int) -> tuple[Any, str | None]:
    """Return the wavelengths (p,) of a header, and their unit if it declares one.

    Linear and natural logarithmic axes (WAVE-LOG, AWAV-LOG) are those of Greisen et al. 2006, A&A 446, 747;
    DC-FLAG = 1 is IRAF's sign of an axis in log10 of Angstrom.
    """
    kind = str(header.get("CTYPE1", "")).upper()
    start, step = (_number(path, header, *names) for names in (("CRVAL1",), ("CD1_1", "CDELT1")))
    first = _number(path, header, "CRPIX1") if "CRPIX1" in header else 1.0
    offset = np.arange(1, pixels + 1) - first
    if kind.startswith(("FREQ", "VELO", "VRAD", "VOPT", "ENER", "WAVN", "RA", "DEC", "PIXEL")):
        raise DataError(f"{path}: its axis is {kind}, not of wavelengths")
    if kind.endswith("-LOG"):
        if start <= 0:
            raise DataError(f"{path}: CRVAL1 = {start:g} cannot begin a logarithmic axis")
        axis = start * np.exp(offset * step / start)
    else:
        axis = start + offset * step
    logarithmic = header.get("DC-FLAG") == 1 or kind.startswith(("LOGLAM", "LOG10", "LOG-LAM", "LOG(LAM"))
    if logarithmic:
        return axis, "log10"
    unit = known_unit(path, header.get("CUNIT1"))
    return (axis if unit is None else u.Quantity(axis, unit)), None


def _number(path: Path, header: Mapping[str, Any], *names: str) -> float:
    """Return the number on the first of some cards that a header has.

    Raises:
        DataError: it is none.
    """
    name = next(name for name in names if name in header)
    try:
        return float(header[name])
    except (TypeError, ValueError):
        raise DataError(f"{path}: {name} is {header[name]!r}, not a number") from None


def _ivar(error: Any, flux: Any) -> Any:
    """Return the inverse variance of errors, in the unit of the flux if they have none; 0 where bad."""
    if error is None:
        return None
    unit = getattr(error, "unit", None) or getattr(flux, "unit", None)
    ivar = inverse_variance(np.asarray(getattr(error, "value", error), np.float64))
    return ivar if unit is None else u.Quantity(ivar, unit**-2)


def _ids(path: Path, count: int) -> list[str]:
    return [stem(path)] if count == 1 else [f"{stem(path)}-{row}" for row in range(count)]


def _medium(hdus: fits.HDUList, hdu: Any) -> str | None:
    """Return the medium that the name of a column, the headers or the comments on the axis declare."""
    if _is_table(hdu) and (medium := medium_of(by_role(hdu.columns.names)["wavelength"])) is not None:
        return medium
    header = _header(hdus, hdu)
    text = str(header.get("AIRORVAC", "")).strip().lower()
    if text.startswith(("air", "vac")):
        return "air" if text.startswith("air") else "vacuum"
    if isinstance(header.get("VACUUM"), bool | np.bool_):
        return "vacuum" if header["VACUUM"] else "air"
    kind = str(header.get("CTYPE1", "")).strip().upper()
    return {"AWAV": "air", "WAVE": "vacuum"}.get(kind.removesuffix("-LOG")) or _medium_in_comments(hdu)


def _medium_in_comments(hdu: Any) -> str | None:
    """Return the only medium that the comments on an axis, or on a column of wavelengths, mention."""
    cards = list(_AXIS_CARDS)
    if _is_table(hdu):
        number = hdu.columns.names.index(by_role(hdu.columns.names)["wavelength"]) + 1
        cards = [f"TTYPE{number}", f"TUNIT{number}"]
    words = re.findall(
        r"[a-z]+", " ".join(hdu.header.comments[card] for card in cards if card in hdu.header).lower()
    )
    media = {_MEDIA[word] for word in words if word in _MEDIA}
    return media.pop() if len(media) == 1 else None


def _header(hdus: fits.HDUList, hdu: Any) -> dict[str, Any]:
    """Return the values of the primary header, and of that of an HDU, which come first."""
    headers = [hdus[0].header, hdu.header]
    return {card.keyword: card.value for header in headers for card in header.cards if card.keyword}


def _position(header: Mapping[str, Any]) -> dict[str, float]:
    """Return ra and dec in degrees, if the header has both as numbers."""
    found = {name: header.get(name.upper()) for name in ("ra", "dec")}
    numbers = {name: float(v) for name, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}
    return numbers if len(numbers) == len(found) else {}
