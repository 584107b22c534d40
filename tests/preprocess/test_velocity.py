import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

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
    expected = "too_fast" if abs(km_s) > 250 else "good"
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
    assert to_lamost(spectra.with_meta(redshift=[0.0])).meta["flag"].tolist() == ["good"]
    assert to_lamost(spectra.with_meta(redshift=[np.nan])).meta["flag"].tolist() == ["too_fast"]
    assert to_lamost(spectra.with_meta(v=[300.0]), velocity_column="v").meta["flag"].tolist() == ["good"]


def test_correlations_equal_those_of_one_shift_after_the_other():
    rng = np.random.default_rng(2)
    flux, mask = 1 + 0.2 * rng.normal(size=(20, 1462)), rng.random((20, 1462)) < 0.1
    mask[3] = True
    mask[4, 40:] = True  # at some shifts, no pixel is left
    velocity, peak = measure_velocity(flux, mask)
    rest = sum(
        -depth * np.exp(-0.5 * ((LAMOST_WAVELENGTH - line) / 4.0) ** 2) for line, depth in LINES.items()
    )
    template = (rest - uniform_filter1d(rest, 61))[15:-15]
    level = uniform_filter1d(np.where(mask, 1.0, flux), 61, axis=1)
    lines = np.where(mask, 0.0, np.clip(flux - level, -0.5, 0.2))
    for row in range(20):
        correlation = []
        for shift in range(31):
            part = lines[row, shift : shift + template.size]
            norm = np.sqrt((part**2).sum() * (template**2).sum())
            correlation.append(part @ template / norm if norm > 0 else 0.0)
        best = np.clip(np.argmax(correlation), 1, 29)
        np.testing.assert_allclose(peak[row], max(correlation), rtol=1e-12, atol=1e-15)
        if row != 3:  # wholly masked: no shift is best
            pixels = velocity[row] / (1e-4 * np.log(10.0) * 299792.458)
            assert abs(pixels - (best - 15)) <= 0.5 + 1e-9
