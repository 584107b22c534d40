import numpy as np
import pytest

from specjax.errors import ConfigError
from specjax.preprocess import to_lamost
from specjax.simulate import grism
from specjax.spectra import LAMOST_WAVELENGTH, Spectra

GRID = np.arange(3300.0, 6200.0, 1.0)


def stars(n=3, **more):
    rng = np.random.default_rng(0)
    flux = 1e-12 * (1 + 0.2 * rng.random((n, 1))) * (1 - 0.4 * (rng.random((n, GRID.size)) < 0.05))
    return Spectra.build(GRID, flux, id=[f"HD{k}" for k in range(n)], medium="air", survey="x", **more)


def test_the_grid_holds_the_lamost_grid_and_what_the_continuum_needs():
    np.testing.assert_allclose(grism.WAVELENGTH[338 : 338 + 1462], LAMOST_WAVELENGTH, rtol=1e-15)
    assert grism.WAVELENGTH[0] < 3700
    assert grism.WAVELENGTH[-1] > 5709


def test_noise_has_the_stated_size_and_ivar_says_so():
    flat = Spectra.build(GRID, np.full((50, GRID.size), 2.0), id=[f"s{k}" for k in range(50)])
    noisy = grism.degrade(flat, snr=20.0)
    # 94,250 draws know their standard deviation to 0.23%; four times that.
    np.testing.assert_allclose(np.std(noisy.flux - 2.0), 0.1, rtol=0.01)
    np.testing.assert_allclose(noisy.ivar, 100.0, rtol=1e-9)
    assert noisy.has_ivar
    assert noisy.medium == "vacuum"
    assert noisy.survey == "-grism"


def test_noise_belongs_to_the_star_and_the_seed():
    whole = grism.degrade(stars(), seed=1)
    part = grism.degrade(stars()[[2, 0]], seed=1)
    np.testing.assert_allclose(part.flux, whole.flux[[2, 0]], rtol=1e-12)  # the order of sums
    assert (grism.degrade(stars(), seed=2).flux != whole.flux).all()
    one, other = (grism.degrade(stars()[[k]], seed=1) for k in (0, 1))
    noise = [(s.flux[0] * np.sqrt(s.ivar[0]) - 20) for s in (one, other)]
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1  # 1885 pixels: 0.023 a standard deviation


def test_the_resolution_is_the_stated_one():
    line = Spectra.build(GRID, 1 - 0.5 * np.exp(-0.5 * ((GRID - 5000) / 1.2739827) ** 2), id=["a"])
    blurred = grism.degrade(line, snr=1e9)
    depth = 1 - blurred.flux[0]
    half = grism.WAVELENGTH[depth > depth.max() / 2]
    assert abs((half[-1] - half[0]) - 24.0) < 1.5  # two pixels of 1.15 A less one


def test_gaps_stay_masked_and_flagged_pixels_do_not_leak():
    mask = np.zeros((3, GRID.size), bool)
    mask[0, (GRID > 4400) & (GRID < 4600)] = True
    low, high = (
        grism.degrade(Spectra.build(GRID, np.where(mask, value, 1.0), mask=mask, id=["a", "b", "c"]))
        for value in (0.0, 1e4)
    )
    np.testing.assert_array_equal(low.flux, high.flux)
    inside = (grism.WAVELENGTH > 4405) & (grism.WAVELENGTH < 4595)
    assert low.mask[0, inside].all()
    assert not low.mask[1:].any()


def test_it_goes_on_like_any_survey():
    result = to_lamost(grism.degrade(stars()))
    assert result.meta["flag"].tolist() == [""] * 3
    pixel_noise = 1 / np.sqrt(np.median(result.ivar, axis=1))
    np.testing.assert_allclose(pixel_noise, 1 / 20, rtol=0.1)  # the continuum is a few percent above the flux


def test_a_signal_to_noise_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="positive"):
        grism.degrade(stars(), snr=0.0)
