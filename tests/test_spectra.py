from xml.etree import ElementTree

import numpy as np
import pytest

from specjax import pixels
from specjax.errors import ConfigError, DataError
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.spectra import Spectra
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH

GRID = np.linspace(4000.0, 5600.0, 17)


def build(n=3, **changes):
    rng = np.random.default_rng(0)
    arguments = {"wavelength": GRID, "flux": rng.normal(1, 0.1, (n, GRID.size)), **changes}
    return Spectra.build(**arguments)


def test_to_vacuum_changes_air_wavelengths_only():
    air = build(medium="air")
    moved = air.to_vacuum()
    assert moved.medium == "vacuum"
    velocity = 299792.458 * (moved.wavelength / air.wavelength - 1)
    assert ((velocity > 82) & (velocity < 86)).all()  # 84 km/s at 5000 A
    assert moved.to_vacuum() is moved


def test_build_masks_pixels_that_are_not_finite_or_have_no_information():
    flux = np.ones((1, GRID.size))
    ivar = np.ones((1, GRID.size))
    flux[0, 1], flux[0, 2], ivar[0, 3], ivar[0, 4], ivar[0, 5] = np.nan, np.inf, np.nan, 0.0, -1.0
    spectra = build(flux=flux, ivar=ivar)
    assert np.flatnonzero(spectra.mask[0]).tolist() == [1, 2, 3, 4, 5]
    assert (spectra.ivar[0, 1:6] == 0).all()
    assert np.isfinite(spectra.flux).all()
    assert spectra.has_ivar


def test_build_treats_every_row_alike_and_leaves_the_arguments_as_they_are(monkeypatch):
    monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", 40)  # two rows
    random = np.random.default_rng(0)
    wavelength, flux = np.arange(4000.0, 4020.0), random.normal(1.0, 0.1, (7, 20))
    ivar, mask = random.uniform(-0.2, 1.0, flux.shape), random.random(flux.shape) < 0.1
    flux[random.random(flux.shape) < 0.1] = np.nan
    flux[4, 3:7] = 0.0
    given = [array.copy() for array in (flux, ivar, mask)]
    whole = Spectra.build(wavelength, flux, ivar, mask)
    for array, before in zip((flux, ivar, mask), given, strict=True):
        np.testing.assert_array_equal(array, before)
    for row in range(7):
        alone = Spectra.build(wavelength, flux[row], ivar[row], mask[row])
        for name in ("flux", "ivar", "mask"):
            np.testing.assert_array_equal(getattr(whole, name)[row], getattr(alone, name)[0])


def test_build_masks_runs_of_zeros_but_not_single_zeros():
    flux = np.ones((2, GRID.size))
    flux[0, 3:7] = 0.0
    flux[1, [3, 5, 6]] = 0.0
    mask = build(flux=flux).mask
    assert np.flatnonzero(mask[0]).tolist() == [3, 4, 5, 6]
    assert not mask[1].any()


def test_build_sorts_all_arrays_together():
    rng = np.random.default_rng(1)
    order = rng.permutation(GRID.size)
    flux, ivar, mask = rng.normal(size=(3, 2, GRID.size))
    ivar, mask = np.exp(ivar), mask > 1
    expected = build(flux=flux, ivar=ivar, mask=mask)
    got = build(wavelength=GRID[order], flux=flux[:, order], ivar=ivar[:, order], mask=mask[:, order])
    for name in ("wavelength", "flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_build_accepts_big_endian_float32_a_single_spectrum_and_a_grid_of_one_row():
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
def test_declared_units_are_converted_and_undeclared_ones_refused(unit, grid):
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
def test_invalid_input_raises_a_one_line_error(changes, message):
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
def test_indexing_selects_rows_of_every_column(rows):
    spectra = build(id=["a", "b", "c"], meta={"teff": [1.0, 2.0, 3.0]})
    chosen = spectra[rows]
    index = np.atleast_1d(np.arange(3)[rows])
    assert chosen.id.tolist() == spectra.id[index].tolist()
    np.testing.assert_array_equal(chosen.flux, spectra.flux[index])
    np.testing.assert_array_equal(chosen.meta["teff"], spectra.meta["teff"][index])


def test_select_requires_each_id_exactly_once():
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


def test_a_gap_in_the_grid_gets_masked_pixels_once():
    grid = np.delete(np.arange(4000.0, 4100.0), slice(40, 60))
    spectra = Spectra.build(grid, np.ones((2, 80)), np.full((2, 80), 4.0))
    inserted = np.flatnonzero(spectra.mask[0])
    assert spectra.wavelength[inserted].tolist() == [4040.0, 4059.0]
    np.testing.assert_array_equal(np.delete(spectra.wavelength, inserted), grid)
    assert (spectra.ivar[:, inserted] == 0).all()
    again = Spectra.build(spectra.wavelength, spectra.flux, spectra.ivar, spectra.mask)
    np.testing.assert_array_equal(again.wavelength, spectra.wavelength)
    uneven = np.cumsum(np.geomspace(0.5, 9.0, 40)) + 4000  # growing steps are not gaps
    np.testing.assert_array_equal(Spectra.build(uneven, np.ones(40)).wavelength, uneven)


@pytest.fixture(
    params=[("lamost", LAMOST_WAVELENGTH, 1.0, to_lamost), ("gaia_xp", GAIA_XP_WAVELENGTH, 0.0, to_gaia_xp)]
)
def model_grid(request):
    """Survey, wavelength, value of masked pixels, and function that makes input of the survey's tower."""
    return request.param


def grid_flux(grid, dtype=np.float64):
    return np.random.default_rng(2).normal(1, 0.1, (3, grid.size)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_on_grid_gives_model_input_of_the_same_precision(model_grid, dtype):
    survey, grid, _, prepare = model_grid
    flux = grid_flux(grid, dtype)
    spectra = Spectra.on_grid(flux, survey=survey)
    np.testing.assert_array_equal(spectra.wavelength, grid)
    np.testing.assert_array_equal(spectra.flux, flux)
    assert spectra.flux.dtype == spectra.ivar.dtype == dtype
    assert spectra.valid.all()
    assert not spectra.has_ivar
    assert (spectra.survey, spectra.prepared) == (survey, {"tower": survey})
    assert spectra.id.tolist() == ["0", "1", "2"]
    assert prepare(spectra) is spectra
    with pytest.raises(ConfigError, match="were prepared with"):
        prepare(spectra, **({"method": "interpolate"} if survey == "lamost" else {"fwhm_from": 3.0}))


def test_on_grid_spectra_are_input_of_one_tower_only(model_grid):
    survey, grid, _, prepare = model_grid
    other = to_gaia_xp if prepare is to_lamost else to_lamost
    with pytest.raises(DataError, match=f"prepared for the {survey} tower"):
        other(Spectra.on_grid(grid_flux(grid), survey=survey))


def test_on_grid_replaces_invalid_pixels_whatever_they_hold(model_grid):
    survey, grid, filling, _ = model_grid
    flux, ivar, mask = (
        grid_flux(grid, np.float32),
        np.full((3, grid.size), 4.0),
        np.zeros((3, grid.size), bool),
    )
    flux[0, 1], flux[0, 2], flux[0, 3], ivar[0, 4], ivar[0, 5] = np.nan, np.inf, 1e4, np.nan, -1.0
    mask[0, 1:6], ivar[0, 6], flux[0, 6] = True, 0.0, np.nan
    mask[1, : grid.size // 2], mask[2] = True, True
    given = flux.copy(), ivar.copy(), mask.copy()
    spectra = Spectra.on_grid(flux, ivar=ivar, mask=mask, id=["a", "b", "c"], survey=survey)
    assert spectra.has_ivar
    assert spectra.id.tolist() == ["a", "b", "c"]
    assert np.flatnonzero(spectra.mask[0]).tolist() == [1, 2, 3, 4, 5, 6]
    assert (spectra.flux[spectra.mask] == filling).all()
    assert (spectra.ivar[spectra.mask] == 0).all()
    np.testing.assert_array_equal(spectra.flux[~spectra.mask], flux[~spectra.mask])
    np.testing.assert_array_equal(spectra.ivar[~spectra.mask], 4.0)
    assert (spectra.flux.dtype, spectra.ivar.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(spectra.meta["masked_fraction"], spectra.mask.mean(axis=1))
    assert spectra.meta["flag"].tolist() == ["good", "masked_fraction", "no_coverage"]
    for array, before in zip((flux, ivar, mask), given, strict=True):
        np.testing.assert_array_equal(array, before)


def test_on_grid_accepts_a_single_spectrum_integers_and_masked_arrays():
    flux = np.ma.masked_greater(np.arange(343), 341)
    spectra = Spectra.on_grid(flux, mask=flux.mask, survey="gaia_xp")
    assert spectra.flux.shape == (1, 343)
    assert spectra.flux.dtype == np.float64
    assert spectra.flux[0, -2:].tolist() == [341.0, 0.0]
    with pytest.raises(DataError, match="must be finite"):
        Spectra.on_grid(flux, survey="gaia_xp")


def one_pixel(value):
    array = np.ones((1, 1462))
    array[0, 700] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flux": one_pixel(np.nan)}, "must be finite"),
        ({"flux": one_pixel(-np.inf)}, "must be finite"),
        ({"ivar": one_pixel(np.nan)}, "must be finite"),
        ({"ivar": one_pixel(-1.0)}, "must not be negative"),
        ({"flux": np.ones((1, 343))}, r"must be \(spectra, 1462\), not \(1, 343\)"),
        ({"flux": np.ones((1, 1462, 1))}, r"must be \(spectra, 1462\), not \(1, 1462, 1\)"),
        ({"flux": 1.0}, r"must be \(spectra, 1462\), not \(1, 1\)"),
        ({"flux": [["high"] * 1462]}, "not a rectangular array of numbers"),
        ({"ivar": np.ones((2, 1462))}, r"ivar \(2, 1462\) does not fit flux \(1, 1462\)"),
        ({"mask": np.zeros(343, bool)}, r"mask \(1, 343\) does not fit flux"),
        ({"id": ["a", "b"]}, r"id has shape \(2,\) for 1 spectra"),
        ({"survey": "sloan"}, "unknown survey 'sloan'; surveys are lamost and gaia_xp"),
    ],
)
def test_on_grid_refuses_anything_else(arguments, message):
    with pytest.raises(DataError, match=message):
        Spectra.on_grid(**{"flux": np.ones((1, 1462)), **arguments})


def test_the_representation_is_one_line():
    spectra = Spectra.build(np.linspace(4000, 5000, 50), np.ones((3, 50)), survey="demo", medium="air")
    assert repr(spectra) == "<Spectra 'demo': 3 spectra of 50 pixels, 4000-5000 A in air>"
    prepared = Spectra.on_grid(np.ones((2, 1462)))
    assert repr(prepared).endswith("of 1462 pixels, 3999-5599 A in vacuum, input of the lamost tower>")
    nothing = Spectra.build(np.linspace(4000, 5000, 50), np.ones((0, 50)))
    assert "0 spectra" in repr(nothing)


def test_a_notebook_shows_a_short_table():
    spectra = Spectra.build(np.linspace(4000, 5000, 50), np.ones((4, 50)), survey="<b>", id=list("abcd"))
    html = spectra.with_meta(snr=[1.0, 2.0, np.nan, 3.0])._repr_html_()
    ElementTree.fromstring(html)  # well-formed
    assert "&lt;b&gt;" in html
    assert "<th>median S/N</th><td>2</td>" in html
    assert "a, b, c, ..." in html
    assert len(html) < 1000
