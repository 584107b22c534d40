import numpy as np
import pytest

from specjax.errors import DataError
from specjax.spectra import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, Spectra, air_to_vacuum

GRID = np.linspace(4000.0, 5600.0, 17)


def build(n=3, **changes):
    rng = np.random.default_rng(0)
    arguments = {"wavelength": GRID, "flux": rng.normal(1, 0.1, (n, GRID.size)), **changes}
    return Spectra.build(**arguments)


def test_model_grids_are_the_published_ones():
    assert LAMOST_WAVELENGTH.shape == (1462,)
    np.testing.assert_allclose(np.log10(LAMOST_WAVELENGTH[[0, -1]]), [3.602, 3.7481], rtol=1e-15)
    np.testing.assert_array_equal(GAIA_XP_WAVELENGTH, 10.0 * np.arange(336, 1021, 2))


@pytest.mark.parametrize(("air", "vacuum"), [(5889.950954, 5891.583264), (5895.924237, 5897.558147)])
def test_air_to_vacuum_gives_the_sodium_lines_of_the_nist_database(air, vacuum):
    # 1e-4 A is 5 m/s, the spread between the published formulae for the index of air.
    np.testing.assert_allclose(air_to_vacuum([air]), [vacuum], rtol=0, atol=1e-4)


def test_air_to_vacuum_agrees_with_ciddor_over_the_optical():
    vacuum = np.linspace(3000.0, 10500.0, 50)
    wavenumber2 = (1e4 / vacuum) ** 2
    index = 1 + 1e-8 * (5792105 / (238.0185 - wavenumber2) + 167917 / (57.362 - wavenumber2))
    # Ciddor (1996) has 450 ppm of CO2, wcslib's formula 300 ppm: 2e-8 apart.
    np.testing.assert_allclose(air_to_vacuum(vacuum / index), vacuum, rtol=2.5e-8)


def test_to_vacuum_moves_only_what_is_in_air():
    air = build(medium="air")
    moved = air.to_vacuum()
    assert moved.medium == "vacuum"
    velocity = 299792.458 * (moved.wavelength / air.wavelength - 1)
    assert ((velocity > 82) & (velocity < 86)).all()  # 84 km/s at 5000 A
    assert moved.to_vacuum() is moved


def test_build_masks_what_is_not_finite_and_what_has_no_information():
    flux = np.ones((1, GRID.size))
    ivar = np.ones((1, GRID.size))
    flux[0, 1], flux[0, 2], ivar[0, 3], ivar[0, 4], ivar[0, 5] = np.nan, np.inf, np.nan, 0.0, -1.0
    spectra = build(flux=flux, ivar=ivar)
    assert np.flatnonzero(spectra.mask[0]).tolist() == [1, 2, 3, 4, 5]
    assert (spectra.ivar[0, 1:6] == 0).all()
    assert np.isfinite(spectra.flux).all()
    assert spectra.has_ivar


def test_build_masks_gaps_filled_with_zeros_but_not_a_lone_zero():
    flux = np.ones((2, GRID.size))
    flux[0, 3:7] = 0.0
    flux[1, [3, 5, 6]] = 0.0
    mask = build(flux=flux).mask
    assert np.flatnonzero(mask[0]).tolist() == [3, 4, 5, 6]
    assert not mask[1].any()


def test_build_sorts_and_carries_everything_along():
    rng = np.random.default_rng(1)
    order = rng.permutation(GRID.size)
    flux, ivar, mask = rng.normal(size=(3, 2, GRID.size))
    ivar, mask = np.exp(ivar), mask > 1
    expected = build(flux=flux, ivar=ivar, mask=mask)
    got = build(wavelength=GRID[order], flux=flux[:, order], ivar=ivar[:, order], mask=mask[:, order])
    for name in ("wavelength", "flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_build_takes_big_endian_float32_one_spectrum_and_a_grid_of_one_row():
    flux = np.ones(GRID.size, dtype=">f4")
    spectra = build(wavelength=GRID[None].astype(">f8"), flux=flux)
    assert spectra.flux.shape == (1, GRID.size)
    assert spectra.flux.dtype == np.float64
    assert spectra.flux.dtype.isnative
    assert spectra.wavelength.ndim == 1
    assert not spectra.has_ivar
    assert (spectra.ivar == 1).all()


@pytest.mark.parametrize(
    ("unit", "grid"), [("nm", GRID / 10), ("um", GRID / 1e4), ("log10", np.log10(GRID)), ("angstrom", GRID)]
)
def test_units_are_converted_when_said_and_refused_when_not(unit, grid):
    np.testing.assert_allclose(build(wavelength=grid, unit=unit).wavelength, GRID, rtol=1e-14)
    if unit != "angstrom":
        with pytest.raises(DataError, match=f"if they are in {unit}"):
            build(wavelength=grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux": np.ones((3, 16))}, r"wavelength \(17,\) does not fit flux \(3, 16\)"),
        ({"flux": np.ones((17, 3))}, "transposed"),
        ({"flux": np.ones((2, 3, 17))}, r"not \(2, 3, 17\)"),
        ({"ivar": np.ones((2, 17))}, r"ivar \(2, 17\) does not fit flux \(3, 17\)"),
        ({"mask": np.zeros(17, bool)}, r"mask \(1, 17\) does not fit"),
        ({"id": ["a", "b"]}, r"id has shape \(2,\) for 3 spectra"),
        ({"meta": {"teff": [1.0]}}, "teff has shape"),
        ({"wavelength": np.r_[GRID[:-1], GRID[-2]]}, "occur twice, the first at 5500"),
        ({"wavelength": np.r_[GRID[:-1], np.nan]}, "1 wavelengths are not finite"),
        ({"wavelength": GRID - 4100}, "not optical"),
        ({"wavelength": GRID, "medium": "water"}, "'vacuum' or 'air'"),
        ({"wavelength": GRID, "unit": "furlong"}, "not one of"),
        ({"flux": np.array([["a"] * 17])}, "not a rectangular array of numbers"),
        ({"flux": [[1.0] * 17, [1.0] * 16]}, "not a rectangular array of numbers"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_the_constructor_is_strict():
    good = build()
    fields = {name: getattr(good, name) for name in ("wavelength", "flux", "ivar", "mask", "id")}
    for name, value in (("flux", np.nan), ("ivar", -1.0)):
        with pytest.raises(DataError):
            Spectra(**{**fields, name: np.full(good.flux.shape, value)})
    with pytest.raises(DataError, match="not increasing"):
        Spectra(**{**fields, "wavelength": GRID[::-1].copy()})


@pytest.mark.parametrize("rows", [[2, 0], slice(0, 2), np.array([True, False, True]), 1])
def test_rows_carry_every_column(rows):
    spectra = build(id=["a", "b", "c"], meta={"teff": [1.0, 2.0, 3.0]})
    chosen = spectra[rows]
    index = np.atleast_1d(np.arange(3)[rows])
    assert chosen.id.tolist() == spectra.id[index].tolist()
    np.testing.assert_array_equal(chosen.flux, spectra.flux[index])
    np.testing.assert_array_equal(chosen.meta["teff"], spectra.meta["teff"][index])


def test_select_is_by_id_and_strict():
    spectra = build(id=["a", "b", "b"])
    assert spectra.select(["a"]).id.tolist() == ["a"]
    with pytest.raises(DataError, match="'z' is not among"):
        spectra.select(["a", "z"])
    with pytest.raises(DataError, match="'b' is not unique"):
        spectra.select(["b"])


def test_concatenate_pads_with_masked_pixels_and_keeps_shared_columns():
    left = build(n=2, ivar=np.ones((2, 17)), meta={"teff": [1.0, 2.0], "a": [1, 2]}, survey="x")
    right = build(n=1, wavelength=GRID[:9], flux=np.ones((1, 9)), meta={"teff": [3.0]}, survey="y")
    both = Spectra.concatenate([left, right])
    assert both.wavelength.shape == both.flux.shape == (3, 17)
    assert both.mask[2, 9:].all()
    assert not both.mask[2, :9].any()
    assert list(both.meta) == ["teff"]
    assert both.survey == "x+y"
    assert not both.has_ivar
    assert Spectra.concatenate([left, left]).wavelength.ndim == 1
    with pytest.raises(DataError, match="air"):
        Spectra.concatenate([left, build(medium="air")])
    with pytest.raises(DataError, match="no spectra"):
        Spectra.concatenate([])


def test_a_gap_in_the_grid_is_spanned_by_masked_pixels_once():
    grid = np.delete(np.arange(4000.0, 4100.0), slice(40, 60))
    spectra = Spectra.build(grid, np.ones((2, 80)), np.full((2, 80), 4.0))
    inserted = np.flatnonzero(spectra.mask[0])
    assert spectra.wavelength[inserted].tolist() == [4040.0, 4059.0]
    np.testing.assert_array_equal(np.delete(spectra.wavelength, inserted), grid)
    assert (spectra.ivar[:, inserted] == 0).all()
    again = Spectra.build(spectra.wavelength, spectra.flux, spectra.ivar, spectra.mask)
    np.testing.assert_array_equal(again.wavelength, spectra.wavelength)
    uneven = np.cumsum(np.geomspace(0.5, 9.0, 40)) + 4000  # steps that grow are no gap
    np.testing.assert_array_equal(Spectra.build(uneven, np.ones(40)).wavelength, uneven)
