import numpy as np
import pytest

from specjax.preprocess import to_lamost
from specjax.preprocess.velocity import LINES, measure_velocity
from specjax.spectra import Spectra
from specjax.wavelength import LAMOST_WAVELENGTH

GRID = np.arange(3680.0, 5760.0, 1.0)


def star(km_s, noise=0.02, seed=0):
    """Return a star with the lines of the template, weaker lines of its own and noise, shifted by km_s."""
    rng = np.random.default_rng(seed)
    rest = GRID / (1 + km_s / 299792.458)
    own = dict(zip(rng.uniform(3900, 5650, 30), rng.uniform(0.02, 0.1, 30), strict=True))
    lines = {**{line: 0.4 * depth for line, depth in LINES.items()}, **own}
    flux = np.prod([1 - d * np.exp(-0.5 * ((rest - x) / 3.0) ** 2) for x, d in lines.items()], axis=0)
    return Spectra.build(GRID, (GRID / 5000) ** -1 * flux * (1 + noise * rng.normal(size=GRID.size)))


@pytest.mark.parametrize("km_s", [-600.0, -300.0, -100.0, 0.0, 60.0, 300.0, 900.0])
def test_velocities_are_measured_to_half_a_pixel(km_s):
    spectra = Spectra.concatenate([star(km_s, seed=seed) for seed in range(5)])
    grid = to_lamost(spectra)
    velocity, correlation = measure_velocity(grid.flux, grid.mask)
    np.testing.assert_allclose(velocity, km_s, atol=40)  # a pixel is 69 km/s
    assert (correlation > 0.4).all()
    expected = "too_fast" if abs(km_s) > 250 else ""
    assert grid.meta["flag"].tolist() == [expected] * 5


def test_masked_pixels_are_ignored_and_noise_correlates_weakly():
    grid = to_lamost(star(300.0))
    mask = grid.mask | (np.abs(LAMOST_WAVELENGTH - 4341) < 60)
    spoilt = np.where(mask, -50.0, grid.flux)
    np.testing.assert_allclose(measure_velocity(spoilt, mask)[0], 300.0, atol=40)
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=(20, 1462))
    assert (measure_velocity(noise, np.zeros(noise.shape, bool))[1] < 0.3).all()


def test_a_known_velocity_takes_precedence_over_a_measured_one():
    spectra = star(300.0)
    assert to_lamost(spectra.with_meta(redshift=[0.0])).meta["flag"].tolist() == [""]
    assert to_lamost(spectra.with_meta(redshift=[np.nan])).meta["flag"].tolist() == ["too_fast"]
    assert to_lamost(spectra.with_meta(v=[300.0]), velocity_column="v").meta["flag"].tolist() == [""]
