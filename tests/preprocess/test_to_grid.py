import numpy as np
import pytest

from specjax.errors import ConfigError, DataError
from specjax.preprocess import gaia_xp_fwhm, rebin, to_gaia_xp, to_grid, to_lamost
from specjax.preprocess.to_grid import continuum_of
from specjax.spectra import Spectra
from specjax.wavelength import GAIA_XP_WAVELENGTH, LAMOST_WAVELENGTH, air_to_vacuum

GRID = np.arange(3600.0, 5800.0, 0.9)
WIDE = np.arange(3200.0, 10400.0, 2.0)


def line_star(grid, n=2):
    rng = np.random.default_rng(0)
    centre, depth = rng.uniform(3700, 5700, 60), rng.uniform(0.1, 0.5, 60)
    absorbed = (depth * np.exp(-0.5 * ((grid[:, None] - centre) / 3.0) ** 2)).sum(axis=1)
    return np.stack([(1 + 0.1 * k) * (grid / 5000) ** -1 * np.exp(-absorbed) for k in range(n)])


@pytest.mark.parametrize("method", ["rebin", "interpolate"])
def test_a_clean_spectrum_covers_the_lamost_grid(method):
    result = to_lamost(Spectra.build(GRID, line_star(GRID)), method=method)
    np.testing.assert_array_equal(result.wavelength, LAMOST_WAVELENGTH)
    assert result.meta["flag"].tolist() == ["good", "good"]
    assert not result.mask.any()
    np.testing.assert_allclose(result.flux[0], result.flux[1], rtol=1e-10)  # the same star, brighter


def test_air_wavelengths_are_converted():
    vacuum = Spectra.build(air_to_vacuum(GRID), line_star(GRID))
    air = Spectra.build(GRID, line_star(GRID), medium="air")
    np.testing.assert_array_equal(to_lamost(air).flux, to_lamost(vacuum).flux)
    undeclared = to_lamost(Spectra.build(GRID, line_star(GRID)))
    assert np.abs(undeclared.flux - to_lamost(air).flux).max() > 0.05  # 84 km/s is not rounding


def test_masked_pixels_have_flux_one_and_ivar_zero():
    mask = np.zeros((2, GRID.size), bool)
    mask[0, (GRID > 4900) & (GRID < 5000)] = True
    result = to_lamost(Spectra.build(GRID, np.where(mask, 1e4, line_star(GRID)), mask=mask))
    gap = (LAMOST_WAVELENGTH > 4902) & (LAMOST_WAVELENGTH < 4998)
    assert result.mask[0, gap].all()
    assert (result.flux[result.mask] == 1).all()
    assert (result.ivar[result.mask] == 0).all()
    np.testing.assert_allclose(result.meta["masked_fraction"], result.mask.mean(axis=1))
    assert result.meta["flag"].tolist() == ["good", "good"]


def test_spectra_with_too_few_pixels_are_flagged():
    flux = np.repeat(line_star(GRID, 1), 5, axis=0)
    mask = np.zeros(flux.shape, bool)
    mask[1, GRID < 4500] = True
    mask[2, GRID > 4200] = True
    mask[3, (GRID > 3950) & (GRID < 5650)] = True
    flux[4] = np.nan
    flags = to_lamost(Spectra.build(GRID, flux, mask=mask)).meta["flag"].tolist()
    assert flags == ["good", "masked_fraction", "masked_fraction", "no_coverage", "no_coverage"]


@pytest.mark.parametrize(
    ("low", "high", "flag"), [(3600, 4050, "continuum_failed"), (7000, 9000, "no_coverage")]
)
def test_spectra_that_cannot_be_normalised_or_lie_outside_are_flagged(low, high, flag):
    grid = np.arange(low, high, 1.0)
    flux = -np.ones((1, grid.size)) if flag == "continuum_failed" else np.ones((1, grid.size))
    result = to_lamost(Spectra.build(grid, flux))
    assert result.meta["flag"].tolist() == [flag]
    assert (result.flux == 1).all()


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="'cubic'"):
        to_lamost(Spectra.build(GRID, line_star(GRID)), method="cubic")


def test_prepared_spectra_are_returned_unchanged_and_contradicting_options_refused():
    once = to_lamost(Spectra.build(GRID, line_star(GRID)), fwhm=8.0)
    assert to_lamost(once) is once
    assert to_lamost(once[1:], fwhm=8.0).meta["flag"].tolist() == ["good"]
    for other in ({"fwhm": 3.0}, {"fwhm": 8.0, "fwhm_to": 10.0}, {"method": "interpolate"}):
        with pytest.raises(ConfigError, match="were prepared with"):
            to_lamost(once, **other)
    unsmoothed = to_lamost(Spectra.build(GRID, line_star(GRID)), fwhm=3.0)
    assert to_lamost(unsmoothed, fwhm=2.0) is unsmoothed  # neither leads to smoothing
    with pytest.raises(DataError, match="lamost tower"):
        to_gaia_xp(once)
    xp = to_gaia_xp(Spectra.build(GAIA_XP_WAVELENGTH, line_star(GAIA_XP_WAVELENGTH)))
    assert to_gaia_xp(xp) is xp
    with pytest.raises(DataError, match="different ways"):
        Spectra.concatenate([once, Spectra.build(GRID, line_star(GRID))])
    assert rebin(once, GRID[500:600]).prepared is None


def test_resolution_is_lowered_on_request():
    grid, sigma = np.arange(3600.0, 5800.0, 0.4), 1.5 / 2.3548
    sharp = 1 - 0.5 * np.exp(-0.5 * ((grid - 4800) / sigma) ** 2)
    matched = to_lamost(Spectra.build(grid, sharp), fwhm=1.5, fwhm_to=4.0)
    depth = 1 - matched.flux[0]
    near = np.abs(LAMOST_WAVELENGTH - 4800) < 15
    moment = np.sqrt(np.average((LAMOST_WAVELENGTH[near] - 4800) ** 2, weights=depth[near])) * 2.3548
    np.testing.assert_allclose(moment, 4.0, rtol=0.05)  # pixels of 1.1 A add 0.75 A in quadrature
    assert matched.prepared["fwhm_to"] == 4.0
    for wrong in ({"fwhm_to": 3.0}, {"fwhm": 4.0, "fwhm_to": 3.0}):
        with pytest.raises(ConfigError, match="cannot be smoothed to 3 A"):
            to_lamost(Spectra.build(grid, sharp), **wrong)


@pytest.mark.parametrize(("column", "per_beta"), [("redshift", 1.0), ("rv", 299792.458)])
def test_velocities_are_removed_on_request(column, per_beta):
    beta = np.array([0.0, 1e-3, -5e-4, np.nan])
    grid = GRID * (1 + np.nan_to_num(beta))[:, None]  # the same star, moving
    flux = np.repeat(line_star(GRID, 1), 4, axis=0)
    moving = Spectra.build(grid, flux, meta={column: beta * per_beta})
    rest = to_lamost(moving, velocity_column=column)
    np.testing.assert_allclose(rest.flux, np.repeat(rest.flux[:1], 4, axis=0), rtol=1e-9)  # (1 + b) / (1 + b)
    assert rest.meta["flag"].tolist() == ["good", "good", "good", "no_velocity"]
    assert np.abs(to_lamost(moving).flux[1] - rest.flux[1]).max() > 0.1  # 300 km/s is not rounding
    with pytest.raises(DataError, match="no column 'vrad'"):
        to_lamost(moving, velocity_column="vrad")


@pytest.mark.parametrize(
    "options", [{}, {"fwhm": 9.0}, {"fwhm": 3.0, "fwhm_to": 8.0}, {"velocity_column": "redshift"}]
)
@pytest.mark.parametrize("medium", ["vacuum", "air"])
def test_the_continuum_is_that_by_which_spectra_are_divided(options, medium):
    # Flux over this continuum has a continuum of one all but exactly: fitting it again changes nothing.
    flux = line_star(GRID)
    flux[:, 700] *= 50  # a spike
    spectra = Spectra.build(GRID, flux, medium=medium, meta={"redshift": [1e-4, 3e-4]})
    found = continuum_of(spectra, **options)
    assert found.level.shape == found.masked.shape
    column = np.flatnonzero(found.wavelength == spectra.to_vacuum().wavelength[700])
    assert found.masked[:, column].all() or "fwhm" in options  # smoothing spreads what is not masked
    part = np.searchsorted(spectra.to_vacuum().wavelength, found.wavelength[[0, -1]])
    near = slice(part[0], part[1] + 1)
    divided = np.where(found.masked, 1.0, flux[:, near] / found.level)
    known = np.isfinite(divided)
    assert known.sum() > 1800 * len(flux)
    if "fwhm" in options:
        return
    direct = to_lamost(spectra, **options)
    rest = 1 + (np.array([1e-4, 3e-4]) if options else np.zeros(2))
    for row in range(2):
        grid, values = found.wavelength / rest[row], np.where(known[row], divided[row], 1.0)
        level = np.interp(LAMOST_WAVELENGTH, grid, values)
        valid = ~direct.mask[row]
        # Rebinning averages 0.9 A pixels to 1.1 A ones, interpolation does not; the lines are 7 A wide.
        np.testing.assert_allclose(level[valid], direct.flux[row, valid], atol=0.02)


def test_there_is_no_continuum_of_spectra_on_a_model_grid():
    with pytest.raises(DataError, match="on a model grid"):
        continuum_of(to_lamost(Spectra.build(GRID, line_star(GRID))))


def test_xp_spectra_are_divided_by_the_flux_at_550_nm():
    flux = line_star(GAIA_XP_WAVELENGTH)
    result = to_gaia_xp(Spectra.build(GAIA_XP_WAVELENGTH, flux, np.full(flux.shape, 100.0)))
    np.testing.assert_allclose(result.flux, flux / flux[:, 107:108], rtol=1e-12)
    np.testing.assert_allclose(
        result.ivar, 100 * np.broadcast_to(flux[:, 107:108] ** 2, flux.shape), rtol=1e-12
    )
    assert result.meta["flag"].tolist() == ["good", "good"]


def test_ground_based_spectra_are_degraded_to_xp_resolution():
    narrow = np.exp(-0.5 * ((WIDE - 5000) / 3.0) ** 2)[None] + 1.0
    result = to_gaia_xp(Spectra.build(WIDE, narrow), fwhm_from=3.0)
    bump = result.flux[0] / np.median(result.flux[0]) - 1
    near = np.abs(GAIA_XP_WAVELENGTH - 5000) < 200
    width = np.sqrt(np.average((GAIA_XP_WAVELENGTH[near] - 5000) ** 2, weights=bump[near])) * 2.3548
    # The resolution varies along the line and the sampling is 20 A.
    np.testing.assert_allclose(width, gaia_xp_fwhm(np.array([5000.0]))[0], rtol=0.15)


def test_xp_rows_without_reference_or_coverage_are_flagged():
    flux = np.repeat(line_star(WIDE, 1), 4, axis=0)
    mask = np.zeros(flux.shape, bool)
    mask[1, np.abs(WIDE - 5500) < 100] = True
    mask[2, WIDE > 7400] = True
    mask[3] = True
    result = to_gaia_xp(Spectra.build(WIDE, flux, mask=mask))
    assert result.meta["flag"].tolist() == ["good", "no_reference", "masked_fraction", "no_coverage"]
    assert result.mask[1].all()
    assert np.isfinite(result.flux).all()


def test_only_oversampled_spectra_are_smoothed():
    rng = np.random.default_rng(1)
    clean = Spectra.build(GRID, np.ones((1, GRID.size)))
    noisy = Spectra.build(GRID, 1 + 0.05 * rng.normal(size=(1, GRID.size)))
    as_it_is, matched = to_lamost(noisy), to_lamost(noisy, fwhm=24.0)
    # A Gaussian of sigma 6 A averages about 24 pixels of 0.9 A, so noise falls by nearly five.
    assert matched.flux.std() < 0.3 * as_it_is.flux.std()
    np.testing.assert_allclose(to_lamost(clean, fwhm=24.0).flux, 1.0, atol=1e-9)
    np.testing.assert_array_equal(to_lamost(noisy, fwhm=3.0).flux, as_it_is.flux)


def varied(n, own):
    """Return n spectra with noise, gaps and artefacts, some without any use, on one grid or on several."""
    rng = np.random.default_rng(5)
    flux = line_star(GRID, 1) * (GRID / 5000) ** rng.uniform(-2, 2, (n, 1))
    flux *= 1 + rng.choice([0.01, 0.1, 0.6], (n, 1)) * rng.normal(size=flux.shape)
    mask = rng.random(flux.shape) < rng.choice([0.0, 0.01, 0.2], (n, 1))
    mask[::5, 900:1100], mask[7], mask[9, 300:] = True, True, True
    flux[3::6, 1200:1203], flux[11], flux[13, 50:90] = 50.0, -1.0, np.nan
    ivar = rng.uniform(0.0, 2.0, flux.shape)
    ivar[15], ivar[16, ::3] = 0.0, 0.0
    grid = GRID
    if own:
        grid = GRID * (1 + rng.normal(0, 5e-4, (n, 1))) + rng.choice([0.0, 0.0, 150.0, -250.0], (n, 1))
        grid[20:40:2] = grid[20]
    return Spectra.build(grid, flux, ivar, mask, meta={"rv": rng.normal(0, 300, n)})


@pytest.mark.parametrize("own", [False, True], ids=["shared grid", "own grids"])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "interpolate"}, {"fwhm": 8.0}, {"fwhm": 2.0, "fwhm_to": 3.0, "velocity_column": "rv"}],
    ids=str,
)
def test_spectra_do_not_depend_on_the_others_of_a_batch(own, options, monkeypatch):
    monkeypatch.setattr(to_grid, "_ROWS_AT_ONCE", 25)  # several batches
    many = varied(60, own)
    together = to_lamost(many, **options)
    assert len(set(together.meta["flag"])) > 3
    for row in range(60):
        alone = to_lamost(many[row], **options)
        np.testing.assert_array_equal(together.mask[row], alone.mask[0])
        # The continuum magnifies rounding errors where little of a spectrum is left or where it approaches 0.
        np.testing.assert_allclose(together.flux[row], alone.flux[0], rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(together.ivar[row], alone.ivar[0], rtol=1e-11)
        for column in ("flag", "masked_fraction", "rv"):
            np.testing.assert_array_equal(together.meta[column][row], alone.meta[column][0])


def test_pixels_far_from_the_grid_have_no_effect():
    """They are left out of all steps, of which smoothing reaches furthest."""
    wide = np.arange(2500.0, 9000.0, 1.1)
    flux = np.repeat(line_star(wide, 1), 2, axis=0)
    for options in ({}, {"fwhm": 20.0, "fwhm_to": 60.0}, {"velocity_column": "redshift"}):
        near = (wide > 3100) & (wide < 6600)
        full, part = (
            to_lamost(Spectra.build(wide[keep], flux[:, keep], meta={"redshift": [-0.05, 0.05]}), **options)
            for keep in (wide > 0, near)
        )
        np.testing.assert_array_equal(full.mask, part.mask)
        np.testing.assert_allclose(full.flux, part.flux, rtol=1e-12)


def test_no_spectra_give_no_spectra():
    none = to_lamost(Spectra.build(GRID, line_star(GRID))[:0])
    assert none.flux.shape == (0, 1462)
