"""Quantities with units, and spectra of specutils, become the spectra that plain arrays would make."""

import sys

import numpy as np
import pytest
from astropy import constants
from astropy import units as u
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.table import MaskedColumn, Table
from astropy.utils.masked import Masked

from specjax.errors import DataError
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra

WAVELENGTH = np.linspace(3800.0, 5700.0, 400)
RNG = np.random.default_rng(0)
FLUX = RNG.uniform(0.5, 1.5, (3, WAVELENGTH.size))
IVAR = RNG.uniform(50, 150, FLUX.shape)
DENSITY = u.Unit("1e-17 erg / (s cm2 Angstrom)")
ROUNDING = {"rtol": 1e-12}  # a handful of float64 products


def assert_same(found, expected, *, rtol=1e-12):
    np.testing.assert_allclose(found.wavelength, expected.wavelength, rtol=rtol)
    np.testing.assert_allclose(found.flux, expected.flux, rtol=rtol)
    np.testing.assert_allclose(found.ivar, expected.ivar, rtol=rtol)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert (found.medium, found.has_ivar) == (expected.medium, expected.has_ivar)


@pytest.mark.parametrize("unit", ["nm", "um", "m", "THz", "Hz", "1/cm", "eV", "J"])
def test_any_spectral_unit_gives_the_same_wavelengths(unit):
    axis = (WAVELENGTH * u.AA).to(unit, u.spectral())
    assert_same(Spectra.build(axis, FLUX, IVAR), Spectra.build(WAVELENGTH, FLUX, IVAR))


def test_short_wavelengths_with_a_unit_are_not_taken_for_another_unit():
    axis = np.linspace(120, 250, 30) * u.nm
    assert Spectra.build(axis, np.ones(30)).wavelength[0] == pytest.approx(1200.0)


@pytest.mark.parametrize(
    "unit", ["Jy", "mJy", "erg / (s cm2 Hz)", "photon / (s cm2 Angstrom)", "W / (m2 um)"]
)
def test_flux_densities_agree_with_those_per_wavelength(unit):
    axis, flux = WAVELENGTH * u.AA, FLUX * DENSITY
    there = u.spectral_density(axis)
    given, scale = flux.to(unit, there), (1 * DENSITY).to(unit, there)
    found = Spectra.build(axis, given, IVAR / scale**2)
    per_wavelength = u.Unit(found.meta["flux_unit"][0])
    assert per_wavelength.is_equivalent(DENSITY)
    factor = (1 * DENSITY).to_value(per_wavelength)
    expected = Spectra.build(WAVELENGTH, FLUX * factor, IVAR / factor**2)
    assert_same(found, expected)


def test_janskys_are_converted_by_the_square_of_the_wavelength():
    found = Spectra.build(WAVELENGTH * u.AA, np.ones(WAVELENGTH.size) * u.Jy)
    expected = 1e-23 * constants.c.to_value("Angstrom / s") / WAVELENGTH**2
    np.testing.assert_allclose(found.flux[0], expected, **ROUNDING)


@pytest.mark.parametrize("unit", ["", "ct", "adu / s", "1e-17 erg / (s cm2 Angstrom)"])
def test_other_units_of_the_flux_are_noted(unit):
    found = Spectra.build(WAVELENGTH, FLUX * u.Unit(unit), IVAR)
    assert_same(found, Spectra.build(WAVELENGTH, FLUX, IVAR))
    assert [u.Unit(text) for text in found.meta.get("flux_unit", ["", "", ""])] == [u.Unit(unit)] * 3


def test_plain_wavelengths_in_another_unit_are_those_of_the_flux_in_janskys():
    found = Spectra.build(WAVELENGTH / 10, FLUX * u.Jy, unit="nm")
    assert_same(found, Spectra.build(WAVELENGTH * u.AA, FLUX * u.Jy))


def test_inverse_variances_may_have_a_unit_of_their_own():
    found = Spectra.build(WAVELENGTH, FLUX * u.Jy, (IVAR / u.Jy**2).to(1 / u.mJy**2))
    assert_same(found, Spectra.build(WAVELENGTH, FLUX * u.Jy, IVAR))


def test_masked_quantities_and_columns_are_masked_pixels():
    hidden = FLUX > 1.4
    expected = Spectra.build(WAVELENGTH, FLUX, IVAR, mask=hidden)
    quantity = Spectra.build(WAVELENGTH, Masked(FLUX * u.ct, hidden), IVAR)
    table = Table({"flux": MaskedColumn(FLUX[0], mask=hidden[0], unit="ct"), "wave": WAVELENGTH / 10})
    table["wave"].unit = "nm"
    column = Spectra.build(table["wave"], table["flux"], IVAR[0])
    for found, wanted in ((quantity, expected), (column, expected[:1])):
        np.testing.assert_array_equal(found.mask, wanted.mask)
        np.testing.assert_allclose(found.flux[found.valid], wanted.flux[wanted.valid], **ROUNDING)
        np.testing.assert_allclose(found.wavelength, WAVELENGTH, **ROUNDING)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wavelength": WAVELENGTH * u.s}, "spectral axis in s cannot be converted to Angstrom"),
        ({"wavelength": (1e15 / WAVELENGTH) * u.Hz, "medium": "air"}, "that of waves in vacuum"),
        ({"wavelength": WAVELENGTH * u.AA, "unit": "nm"}, "have a unit of their own: leave out 'nm'"),
        ({"flux": FLUX * u.mag}, "flux in mag is not linear"),
        ({"flux": FLUX * u.ABmag}, r"flux in mag\(AB\) is not linear"),
        ({"ivar": IVAR / u.Jy**2}, "ivar has the unit 1 / Jy2, but flux has none"),
        ({"flux": FLUX * u.Jy, "ivar": IVAR / u.Jy}, "ivar in 1 / Jy does not fit flux in Jy"),
    ],
)
def test_other_quantities_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Spectra.build(**{"wavelength": WAVELENGTH, "flux": FLUX, **arguments})


@pytest.fixture(scope="module")
def specutils():
    return pytest.importorskip("specutils")


def spectrum(specutils, row=0, **changes):
    given = {
        "spectral_axis": WAVELENGTH * u.AA,
        "flux": FLUX[row] * DENSITY,
        "uncertainty": InverseVariance(IVAR[row]),
        **changes,
    }
    return specutils.Spectrum(**given)


@pytest.mark.parametrize(
    "uncertainty",
    [
        InverseVariance(IVAR[0]),
        VarianceUncertainty(1 / IVAR[0]),
        StdDevUncertainty(IVAR[0] ** -0.5),
        StdDevUncertainty(IVAR[0] ** -0.5 * 1e-20, unit="erg / (s cm2 Angstrom)"),
    ],
)
def test_any_uncertainty_is_an_inverse_variance(specutils, uncertainty):
    scale = 1e-20 if uncertainty.unit else 1.0
    flux = FLUX[0] * scale * (u.Unit("erg / (s cm2 Angstrom)") if uncertainty.unit else DENSITY)
    found = Spectra.from_specutils(spectrum(specutils, flux=flux, uncertainty=uncertainty))
    assert_same(found, Spectra.build(WAVELENGTH, FLUX[0] * scale, IVAR[0] / scale**2))


def test_the_unit_of_an_uncertainty_may_differ_from_that_of_the_flux(specutils):
    error = StdDevUncertainty(IVAR[0] ** -0.5 * 1e3, unit="mJy")
    found = Spectra.from_specutils(spectrum(specutils, flux=FLUX[0] * u.Jy, uncertainty=error))
    assert_same(found, Spectra.build(WAVELENGTH * u.AA, FLUX[0] * u.Jy, IVAR[0]))


def test_rows_lists_and_collections_are_the_same_spectra(specutils):
    expected = Spectra.build(WAVELENGTH, FLUX, IVAR)
    rows = spectrum(specutils, flux=FLUX * DENSITY, uncertainty=InverseVariance(IVAR))
    columns = spectrum(
        specutils, flux=FLUX.T * DENSITY, uncertainty=InverseVariance(IVAR.T), spectral_axis_index=0
    )
    each = [spectrum(specutils, row) for row in range(3)]
    collection = specutils.SpectrumCollection(
        flux=FLUX * DENSITY,
        spectral_axis=np.tile(WAVELENGTH, (3, 1)) * u.AA,
        uncertainty=InverseVariance(IVAR),
    )
    for given in (rows, columns, each, tuple(each), specutils.SpectrumList(each), collection):
        found = Spectra.from_specutils(given)
        assert_same(found, expected)
        assert found.id.tolist() == ["0", "1", "2"]
        assert {u.Unit(text) for text in found.meta["flux_unit"]} == {DENSITY}


def test_spectra_survive_the_way_there_and_back(specutils):
    mask = RNG.random(FLUX.shape) < 0.1
    spectra = Spectra.build(
        WAVELENGTH * u.AA, FLUX * DENSITY, IVAR, mask, id=["a", "b", "c"], survey="demo", medium="air",
        meta={"snr": [10.0, 20.0, 30.0], "name": ["x", "y", "z"], "n": [1, 2, 3]},
    )  # fmt: skip
    there = spectra.to_specutils()
    assert isinstance(there, specutils.SpectrumList)
    assert (there[1].meta["id"], there[1].flux.unit) == ("b", DENSITY)
    back = Spectra.from_specutils(there)
    assert_same(back, spectra)
    assert (back.id.tolist(), back.survey) == (spectra.id.tolist(), "demo")
    assert back.meta.keys() == spectra.meta.keys()
    for name, column in spectra.meta.items():
        np.testing.assert_array_equal(back.meta[name], column)
    assert_same(to_lamost(back), to_lamost(spectra), rtol=1e-7)  # through another continuum fit


def test_prepared_spectra_have_no_unit(specutils):
    prepared = Spectra.on_grid(np.ones((1, 1462))).with_meta(flux_unit=["Jy"])
    assert prepared.to_specutils()[0].flux.unit == u.one


def test_metadata_masks_and_redshifts_are_taken_over(specutils):
    mask = np.arange(WAVELENGTH.size) < 5
    given = spectrum(specutils, mask=mask, redshift=1e-4, meta={"id": "s1", "seeing": 1.2, "header": {}})
    found = Spectra.from_specutils([given, given], survey="mine")
    assert found.mask[:, :5].all()
    assert (found.survey, found.id.tolist()) == ("mine", ["s1", "s1"])
    assert found.meta["seeing"].tolist() == [1.2, 1.2]
    np.testing.assert_allclose(found.meta["redshift"], 1e-4, rtol=1e-9)  # by way of a velocity
    np.testing.assert_allclose(found.wavelength, WAVELENGTH, **ROUNDING)
    assert Spectra.from_specutils(given, id=["other"]).id.tolist() == ["other"]


def test_the_medium_is_the_declared_one(specutils):
    header = spectrum(specutils, meta={"header": {"CTYPE1": "AWAV"}})
    assert Spectra.from_specutils(header).medium == "air"
    assert Spectra.from_specutils(spectrum(specutils), medium="air").medium == "air"
    assert Spectra.from_specutils(spectrum(specutils)).medium == "vacuum"
    with pytest.raises(DataError, match="declare wavelengths in air, not vacuum"):
        Spectra.from_specutils(header, medium="vacuum")


def test_anything_else_is_refused(specutils):
    with pytest.raises(DataError, match="a str is not a Spectrum"):
        Spectra.from_specutils(["star.fits"])
    with pytest.raises(DataError, match="a int is not a Spectrum"):
        Spectra.from_specutils(3)
    with pytest.raises(DataError, match="there are no spectra"):
        Spectra.from_specutils([])
    with pytest.raises(DataError, match="2 ids were given for 1 spectra"):
        Spectra.from_specutils(spectrum(specutils), id=["a", "b"])
    with pytest.raises(DataError, match="UnknownUncertainty has no inverse variance"):
        Spectra.from_specutils(spectrum(specutils, uncertainty=UnknownUncertainty(IVAR[0])))
    with pytest.raises(DataError, match="in pix cannot be converted"):
        Spectra.from_specutils(specutils.Spectrum(flux=FLUX[0] * u.ct))


def test_without_specutils_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "specutils", None)
    with pytest.raises(DataError, match=r"pip install 'specjax\[specutils\]'"):
        Spectra.build(WAVELENGTH, FLUX).to_specutils()
