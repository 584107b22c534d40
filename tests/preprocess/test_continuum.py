import numpy as np
import pytest

from specjax.preprocess.continuum import fit_continuum, median_filter, normalise
from specjax.spectra import Spectra

GRID = np.arange(3600.0, 5800.0, 0.9)


def star(grid=GRID, slope=1.0, lines=40, seed=0):
    """A smooth continuum with Gaussian absorption lines, and that continuum."""
    rng = np.random.default_rng(seed)
    x = (grid - 4700) / 1000
    continuum = 1.0 + 0.3 * slope * x - 0.2 * x**2
    centre, depth = rng.uniform(3700, 5700, lines), rng.uniform(0.1, 0.6, lines)
    absorbed = (depth * np.exp(-0.5 * ((grid[:, None] - centre) / 2.0) ** 2)).sum(axis=1)
    return continuum * np.exp(-absorbed), continuum


def spectra(flux, grid=GRID, **more):
    return Spectra.build(grid, flux, **more)


def test_the_continuum_of_a_line_spectrum_is_found():
    flux, continuum = star()
    inside = (GRID > 3800) & (GRID < 5600)
    found = fit_continuum(GRID, flux[None], np.ones((1, GRID.size), bool))[0]
    # The upper envelope of lines this deep stays within 2% of the truth away from the ends.
    np.testing.assert_allclose(found[inside], continuum[inside], rtol=0.02)
    assert np.isnan(found[(GRID < 3700) | (GRID > 5700)]).all()


def test_a_quintic_without_lines_is_its_own_continuum():
    x = (GRID - 4700) / 1000
    flux = 2 + 0.3 * x - 0.2 * x**3 + 0.1 * x**5
    result = normalise(spectra(flux))
    # The running median of a curve and the envelope of its rounding: 1e-5.
    np.testing.assert_allclose(result.flux[~result.mask], 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e17])
def test_normalisation_does_not_depend_on_the_scale_of_the_flux(scale):
    flux, _ = star()
    reference = normalise(spectra(flux, ivar=np.full((1, GRID.size), 100.0)))
    scaled = normalise(spectra(flux * scale, ivar=np.full((1, GRID.size), 100.0 / scale**2)))
    np.testing.assert_allclose(scaled.flux, reference.flux, rtol=1e-10)  # ten rounds of a 6x6 solution
    np.testing.assert_allclose(scaled.ivar, reference.ivar, rtol=1e-10)


@pytest.mark.parametrize("how", ["mask", "ivar"])
def test_a_flagged_pixel_changes_no_unflagged_pixel(how):
    flux, _ = star()
    bad = np.zeros(GRID.size, bool)
    bad[[300, 301, 302, 303, 900, 1500]] = True
    kept = {"mask": bad[None]} if how == "mask" else {"ivar": np.where(bad, 0.0, 1.0)[None]}
    results = [normalise(spectra(np.where(bad, value, flux), **kept)) for value in (0.0, 1e4, -1e4)]
    for result in results[1:]:
        np.testing.assert_array_equal(result.flux, results[0].flux)
        np.testing.assert_array_equal(result.mask, results[0].mask)
    assert results[0].flux.max() < 1.2  # a flagged 1e4 that leaked would be far above


def test_rows_do_not_depend_on_their_neighbours_or_on_sharing_a_grid():
    flux = np.stack([star(slope=s, seed=s)[0] for s in range(3)])
    together = normalise(spectra(flux))
    own = normalise(spectra(flux, np.stack([GRID, GRID, GRID])))
    for row in range(3):
        alone = normalise(spectra(flux[row]))
        np.testing.assert_allclose(together.flux[row], alone.flux[0], rtol=1e-12)  # order of summation
        np.testing.assert_allclose(own.flux[row], alone.flux[0], rtol=1e-12)


def test_ranges_are_found_by_wavelength_wherever_the_spectrum_starts():
    """The published code takes the Balmer ranges 100 A off for spectra that start at 3600 A."""
    flux = 3.0 - (GRID - 3600) / 1200
    for centre in (4101.7, 4340.5, 4861.3):
        flux = flux * (1 - 0.5 * np.exp(-0.5 * ((GRID - centre) / 15.0) ** 2))
    early = normalise(spectra(flux))
    late = normalise(spectra(flux[GRID > 3689], GRID[GRID > 3689]))
    common = np.isin(early.wavelength, late.wavelength)
    np.testing.assert_allclose(early.flux[:, common], late.flux, rtol=1e-12)
    core = np.abs(early.wavelength - 4340.5) < 1
    np.testing.assert_allclose(early.flux[0, core], 0.5, atol=0.05)  # bridged: the line keeps its depth


@pytest.mark.parametrize("low", [4000.0, 4500.0])
def test_what_there_is_of_the_range_is_used(low):
    flux, continuum = star()
    part = low < GRID
    result = normalise(spectra(flux[part], GRID[part]))
    assert result.meta["flag"].tolist() == [""]
    away = (result.wavelength > low + 50) & (result.wavelength < 5600)
    expected = (flux / continuum)[np.isin(GRID, result.wavelength[away])]
    np.testing.assert_allclose(result.flux[0, away], expected, rtol=0.03)  # fewer pixels hold the fit down


def test_rows_that_cannot_be_fitted_are_flagged_and_masked():
    flux = np.stack([star()[0]] * 4)
    mask = np.zeros(flux.shape, bool)
    mask[1, GRID > 3900] = True  # 200 A left
    flux[2] = -1.0
    mask[3] = True
    result = normalise(spectra(flux, mask=mask))
    assert result.meta["flag"].tolist() == ["", "continuum_failed", "continuum_failed", "continuum_failed"]
    assert result.mask[1:].all()
    assert (result.ivar[1:] == 0).all()


def test_spectra_elsewhere_are_flagged_not_refused():
    infrared = np.linspace(15000.0, 17000.0, 500)
    result = normalise(spectra(np.ones((2, 500)), infrared))
    assert result.meta["flag"].tolist() == ["continuum_failed"] * 2
    assert result.mask.all()


def test_median_filter_takes_the_median_of_the_valid_pixels_only():
    rng = np.random.default_rng(0)
    flux, valid = rng.normal(size=(2, 30)), rng.random((2, 30)) > 0.4
    valid[1, 10:20] = False
    got = median_filter(flux, valid)
    for row in range(2):
        for pixel in range(30):
            window = slice(max(pixel - 3, 0), pixel + 4)
            seen = flux[row, window][valid[row, window]]
            assert got[row, pixel] == (np.median(seen) if seen.size else 0.0)
