"""Arrays with units, and the spectra of specutils, as the plain arrays that `Spectra.build` takes.

Wavelengths become Angstrom, whatever spectral quantity and unit they are given in, and flux densities per
frequency or in photons become flux densities per wavelength. Other fluxes keep their unit, which is noted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import SpectralQuantity

from specjax.errors import DataError
from specjax.typing import AnyArray, FloatArray

FLUX_UNIT = "flux_unit"
"""The column of `Spectra.meta` that names the unit of the flux, as astropy writes it."""

_DENSITY = u.erg / u.s / u.AA
_PER_WAVELENGTH = tuple(_DENSITY / area for area in (u.cm**2, u.one, u.cm**2 * u.sr))
_NOT_LINEAR = (u.mag, u.dex, u.dB)
_OWN_KEYS = ("id", "survey", "medium", "flux_unit")  # that `Spectra.to_specutils` writes into meta
_INSTALL = "specutils is needed: pip install 'specjax[specutils]'"


def build_arguments(wavelength: Any, flux: Any, ivar: Any, *, medium: str) -> dict[str, Any]:
    """Return wavelength, flux and ivar for `Spectra.build` without units, and the unit of the flux.

    Args:
        wavelength: (p,) or (n, p), an astropy `Quantity` or a column with a unit: wavelength, frequency,
            wavenumber or energy. An array without a unit is taken as it is.
        flux: (n, p) or (p,), with a unit or without.
        ivar: like flux, in 1 / unit^2 of the flux or of one that it converts to; None, or without a unit, in
            that of the flux.
        medium: of wavelengths; frequencies are those of waves in vacuum.

    Returns:
        wavelength, flux, ivar, and flux_unit: "" without a unit.

    Raises:
        DataError: a unit that is none of these.
    """
    has_unit = _unit(wavelength) is not None
    grid = _in_angstrom(wavelength, medium) if has_unit else wavelength
    flux_unit, ivar_unit = _unit(flux), _unit(ivar)
    if flux_unit is None:
        if ivar_unit is not None:
            raise DataError(f"ivar has the unit {ivar_unit}, but flux has none")
        return {"wavelength": grid, "flux": flux, "ivar": ivar, "flux_unit": ""}
    factor, target = _conversion(flux_unit, grid)
    values = _values(flux) * factor
    if ivar is not None:
        scale = 1.0 if ivar_unit is None else _scale(ivar_unit, flux_unit)
        ivar = _values(ivar) * (scale / factor**2)
    return {"wavelength": grid, "flux": values, "ivar": ivar, "flux_unit": target.to_string()}


def specutils_arguments(
    spectra: Any, *, id: Sequence[str] | None = None, medium: str | None = None, survey: str = ""
) -> list[dict[str, Any]]:
    """Return the arguments of `Spectra.build` for each spectrum of specutils.

    Args:
        spectra: a `Spectrum`, of one spectrum or several on one axis, a `SpectrumCollection`, a
            `SpectrumList` or any other sequence of `Spectrum`.
        id: names of all spectra; by default `meta["id"]`, or numbers if any has none.
        medium: "vacuum" or "air", if the spectra do not declare it; vacuum by default.
        survey: origin of the spectra; by default `meta["survey"]`.

    Raises:
        DataError: another object, no spectra, a unit or an uncertainty that cannot be converted, a number of
            ids that does not fit, or another medium than the spectra declare.
    """
    blocks = [_block(spectrum, medium, survey) for spectrum in _each(spectra)]
    counts = [len(block["flux"]) for block in blocks]
    if id is not None and len(id) != sum(counts):
        raise DataError(f"{len(id)} ids were given for {sum(counts)} spectra")
    if id is None and all("id" in block for block in blocks):
        id = [name for block in blocks for name in block["id"]]
    names = [str(name) for name in (range(sum(counts)) if id is None else id)]
    starts = np.cumsum([0, *counts])
    return [
        {**block, "id": names[start : start + count]}
        for block, start, count in zip(blocks, starts[:-1], counts, strict=True)
    ]


def to_specutils(
    rows: Iterable[tuple[FloatArray, FloatArray, FloatArray | None, AnyArray, Mapping[str, Any]]],
) -> Any:
    """Return a `SpectrumList` of (wavelength in Angstrom, flux, ivar or None, mask, meta), each (p,).

    Raises:
        DataError: specutils is not installed.
    """
    specutils = _specutils()
    from astropy.nddata import InverseVariance

    made = specutils.SpectrumList()
    for wavelength, flux, ivar, mask, meta in rows:
        made.append(
            specutils.Spectrum(
                spectral_axis=wavelength * u.AA,
                flux=flux * u.Unit(meta.get(FLUX_UNIT, "")),
                uncertainty=None if ivar is None else InverseVariance(ivar),
                mask=mask,
                meta=dict(meta),
            )
        )
    return made


def _unit(values: Any) -> Any:
    return getattr(values, "unit", None)


def _values(values: Any) -> FloatArray:
    """Return the numbers of a quantity, a column or an array in float64; masked ones are NaN."""
    mask = getattr(values, "mask", None)
    plain = getattr(values, "unmasked", values)
    numbers = np.ma.filled(np.ma.array(getattr(plain, "value", plain), dtype=np.float64), np.nan)
    return numbers if mask is None else np.where(np.asarray(mask), np.nan, numbers)


def _in_angstrom(axis: Any, medium: str) -> FloatArray:
    """Return wavelengths in Angstrom from a spectral axis of any kind."""
    is_length = axis.unit.is_equivalent(u.AA)
    if medium == "air" and not is_length:
        raise DataError(
            f"a spectral axis in {axis.unit} is that of waves in vacuum: leave out the medium 'air'"
        )
    try:
        if isinstance(axis, SpectralQuantity):  # knows how its velocities are defined
            return np.array(axis.to(u.AA).value, dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.array((_values(axis) * axis.unit).to(u.AA, u.spectral()).value)
    except (u.UnitsError, ValueError) as error:
        raise DataError(f"a spectral axis in {axis.unit} cannot be converted to Angstrom: {error}") from None


def _conversion(unit: Any, grid: FloatArray) -> tuple[FloatArray, Any]:
    """Return the factors (p,) or (n, p) that turn flux into one per wavelength, and its unit then."""
    if not isinstance(unit, u.UnitBase) or any(unit.is_equivalent(other) for other in _NOT_LINEAR):
        raise DataError(f"flux in {unit} is not linear: convert magnitudes to a flux density first")
    at = np.asarray(grid, np.float64) * u.AA
    for target in _PER_WAVELENGTH:
        if not unit.is_equivalent(target) and unit.is_equivalent(target, u.spectral_density(at[..., :1])):
            ones = np.ones(at.shape) * unit
            return np.array(ones.to(target, u.spectral_density(at)).value), target
    return np.ones(()), unit


def _scale(ivar_unit: Any, flux_unit: Any) -> float:
    """Return the factor from inverse variances in a unit to those of the unit of the flux."""
    try:
        return float((1 * ivar_unit).to(1 / flux_unit**2).value)
    except u.UnitsError:
        raise DataError(f"ivar in {ivar_unit} does not fit flux in {flux_unit}") from None


def _specutils() -> Any:
    try:
        import specutils
    except ImportError:
        raise DataError(_INSTALL) from None
    return specutils


def _each(spectra: Any) -> list[Any]:
    """Return the `Spectrum` objects of what was given."""
    specutils = _specutils()
    if isinstance(spectra, specutils.Spectrum):
        return [spectra]
    if isinstance(spectra, specutils.SpectrumCollection):
        spectra = [spectra[row] for row in np.ndindex(spectra.shape)]
    found = list(spectra) if isinstance(spectra, Iterable) else [spectra]
    if not found:
        raise DataError("there are no spectra in the list")
    for each in found:
        if not isinstance(each, specutils.Spectrum):
            raise DataError(f"a {type(each).__name__} is not a Spectrum of specutils")
    return found


def _block(spectrum: Any, medium: str | None, survey: str) -> dict[str, Any]:
    """Return the arguments of `Spectra.build` for one `Spectrum` of n spectra, and id if it has ids."""
    medium = _medium(spectrum, medium)
    flux = _rows(spectrum, spectrum.flux)
    given = build_arguments(spectrum.spectral_axis, flux, _ivar(spectrum), medium=medium)
    meta, count = _meta(spectrum, len(flux)), len(flux)
    if text := given.pop(FLUX_UNIT):
        meta[FLUX_UNIT] = np.full(count, text)
    block = {
        **given,
        "mask": None if spectrum.mask is None else _rows(spectrum, np.asarray(spectrum.mask)),
        "meta": meta,
        "medium": medium,
        "survey": survey or str(spectrum.meta.get("survey", "")),
    }
    names = np.atleast_1d(np.asarray(spectrum.meta.get("id", []))).astype(np.str_)
    return {**block, "id": names.tolist()} if len(names) == count else block


def _rows(spectrum: Any, values: Any) -> Any:
    """Return values of all spectra as (n, p)."""
    last = np.moveaxis(values, spectrum.spectral_axis_index, -1)
    return last.reshape(-1, last.shape[-1])


def _ivar(spectrum: Any) -> Any:
    """Return the inverse variances (n, p) with their unit; None without uncertainties."""
    uncertainty = spectrum.uncertainty
    if uncertainty is None:
        return None
    from astropy.nddata import InverseVariance

    try:
        with np.errstate(divide="ignore"):  # of errors of zero, whose pixels `Spectra.build` masks
            inverse = uncertainty.represent_as(InverseVariance)
    except TypeError:
        kind = type(uncertainty).__name__
        raise DataError(f"an uncertainty of type {kind} has no inverse variance") from None
    unit = inverse.unit or 1 / spectrum.flux.unit**2
    return _rows(spectrum, np.asarray(inverse.array)) * unit


def _medium(spectrum: Any, wanted: str | None) -> str:
    """Return the medium of the wavelengths: as declared by metadata or WCS, else as wanted, else vacuum."""
    header = spectrum.meta.get("header")
    kinds = [str(header.get("CTYPE1", ""))] if isinstance(header, Mapping) or hasattr(header, "cards") else []
    kinds += [str(kind) for kind in getattr(getattr(spectrum.wcs, "wcs", None), "ctype", ())]
    declared = spectrum.meta.get("medium")
    if declared not in ("air", "vacuum"):
        declared = "air" if any(kind.startswith("AWAV") for kind in kinds) else None
    if wanted is not None and declared not in (None, wanted):
        raise DataError(f"the spectra declare wavelengths in {declared}, not {wanted}")
    return str(declared or wanted or "vacuum")


def _meta(spectrum: Any, count: int) -> dict[str, AnyArray]:
    """Return metadata that are numbers or texts as columns (n,), and the redshift if it is set."""
    columns: dict[str, AnyArray] = {}
    for key, value in spectrum.meta.items():
        column = np.asarray(getattr(value, "value", value))
        if key in _OWN_KEYS or column.dtype.kind not in "iufbU" or column.shape not in ((), (count,)):
            continue
        columns[str(key)] = np.broadcast_to(column, (count,)).copy()
    redshift = np.asarray(spectrum.redshift, np.float64).ravel()
    if redshift.size in (1, count) and np.any(redshift != 0):
        columns.setdefault("redshift", np.broadcast_to(redshift, (count,)).copy())
    return columns
