import numpy as np
import pytest

from specjax.errors import ConfigError
from specjax.preprocess import to_lamost
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.wavelength import LAMOST_WAVELENGTH

GRID = np.arange(3300.0, 6200.0, 1.0)


def stars(n=3, **more):
    rng = np.random.default_rng(0)
    flux = 1e-12 * (1 + 0.2 * rng.random((n, 1))) * (1 - 0.4 * (rng.random((n, GRID.size)) < 0.05))
    return Spectra.build(GRID, flux, id=[f"HD{k}" for k in range(n)], medium="air", survey="x", **more)


def test_the_grid_includes_the_lamost_grid_and_the_continuum_margins():
    np.testing.assert_allclose(grism.WAVELENGTH[338 : 338 + 1462], LAMOST_WAVELENGTH, rtol=1e-15)
    assert grism.WAVELENGTH[0] < 3700
    assert grism.WAVELENGTH[-1] > 5709


def test_noise_and_ivar_match_the_requested_snr():
    flat = Spectra.build(GRID, np.full((50, GRID.size), 2.0), id=[f"s{k}" for k in range(50)])
    noisy = grism.degrade(flat, snr=20.0)
    # The standard deviation of 94,250 draws is uncertain by 0.23%; the tolerance is four times that.
    np.testing.assert_allclose(np.std(noisy.flux - 2.0), 0.1, rtol=0.01)
    np.testing.assert_allclose(noisy.ivar, 100.0, rtol=1e-9)
    assert noisy.has_ivar
    assert noisy.medium == "vacuum"
    assert noisy.survey == "-grism"


def test_noise_depends_only_on_the_star_and_the_seed():
    whole = grism.degrade(stars(), seed=1)
    part = grism.degrade(stars()[[2, 0]], seed=1)
    np.testing.assert_allclose(part.flux, whole.flux[[2, 0]], rtol=1e-12)  # order of summation
    assert (grism.degrade(stars(), seed=2).flux != whole.flux).all()
    one, other = (grism.degrade(stars()[[k]], seed=1) for k in (0, 1))
    noise = [(s.flux[0] * np.sqrt(s.ivar[0]) - 20) for s in (one, other)]
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1  # 0.1 is over four standard deviations, 0.023 for 1885 pixels


def test_the_resolution_is_the_requested_one():
    line = Spectra.build(GRID, 1 - 0.5 * np.exp(-0.5 * ((GRID - 5000) / 1.2739827) ** 2), id=["a"])
    blurred = grism.degrade(line, snr=1e9)
    depth = 1 - blurred.flux[0]
    half = grism.WAVELENGTH[depth > depth.max() / 2]
    assert abs((half[-1] - half[0]) - 24.0) < 1.5  # one pixel is 1.15 A


def test_gaps_stay_masked_and_masked_flux_is_not_used():
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


def test_degraded_spectra_pass_the_preprocessing():
    result = to_lamost(grism.degrade(stars()))
    assert result.meta["flag"].tolist() == ["good"] * 3
    pixel_noise = 1 / np.sqrt(np.median(result.ivar, axis=1))
    np.testing.assert_allclose(pixel_noise, 1 / 20, rtol=0.1)  # the continuum is a few percent above the flux


def test_a_signal_to_noise_of_zero_is_refused():
    with pytest.raises(ConfigError, match="positive"):
        grism.degrade(stars(), snr=0.0)
