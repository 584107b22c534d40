import numpy as np
import pytest

from specjax.preprocess import to_lamost
from specjax.preprocess.quality import mask_spikes
from specjax.spectra import Spectra

GRID = np.arange(3680.0, 5720.0, 1.5)
STAR = 1e-15 * (GRID / 5000) ** -1.2 * (1 - 0.3 * np.abs(np.sin(GRID / 9)) ** 8)


def star(changes=(), wavelength=GRID, n=3, **meta):
    """Return n copies of a star with `changes` (row, first pixel, last pixel + 1, flux)."""
    flux = np.tile(STAR, (n, 1))
    for row, first, last, value in changes:
        flux[row, first:last] = value
    return Spectra.build(wavelength, flux, np.full_like(flux, 1e32), meta=meta)


@pytest.mark.parametrize("pixels", [1, 2, 3, 8, 60])
@pytest.mark.parametrize("height", [1e4, -1e4, 30.0])
def test_a_cosmic_ray_affects_only_its_own_pixels(pixels, height):
    clean = to_lamost(star())
    hit = to_lamost(star([(1, 700, 700 + pixels, height * 1e-15)]))
    assert hit.meta["flag"].tolist() == ["good", "good", "good"]
    masked = hit.mask[1] & ~clean.mask[1]
    assert 1 <= masked.sum() <= 2 * pixels + 2  # pixels of 1.5 A resampled to 1.1 A
    np.testing.assert_array_equal(hit.flux[[0, 2]], clean.flux[[0, 2]])
    # Adjacent pixels are averages over fewer input pixels. Elsewhere only the continuum changes: a gap of 60
    # out of 1360 pixels moves the polynomial by less than this.
    whole = ~(hit.mask[1] | np.roll(hit.mask[1], 1) | np.roll(hit.mask[1], -1))
    np.testing.assert_allclose(hit.flux[1, whole], clean.flux[1, whole], atol=4e-3)
    assert (hit.ivar[1, hit.mask[1]] == 0).all()


def test_rows_on_different_grids_are_cleaned_as_on_a_shared_grid():
    """Of three rows on shifted grids, only the last is hit."""
    rows = [
        star([(2, 600, 602, 1e-10)], wavelength=GRID + shift)[k] for k, shift in enumerate((0, 0.4, 60.0))
    ]
    together = to_lamost(Spectra.concatenate(rows))
    for k, row in enumerate(rows):
        alone = to_lamost(row)
        np.testing.assert_array_equal(together.mask[k], alone.mask[0])
        np.testing.assert_allclose(together.flux[k], alone.flux[0], rtol=1e-12)  # sums in another order


def test_noise_and_stellar_lines_are_not_spikes():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, GRID.size))  # S/N below 1, around a level of 0.1: far beyond 5 times that
    lines = (
        np.where(np.abs(GRID - 4861) < 10, 0.02, 1.0) * (GRID / 4000) ** 4
    )  # a black core, and a red slope
    flux = np.concatenate([noise + 0.1, lines[None] + 0.01 * rng.normal(size=(3, GRID.size))])
    kept = mask_spikes(Spectra.build(GRID, flux))
    assert kept.mask.sum() == 0


def test_a_continuum_that_does_not_follow_the_flux_is_flagged():
    """An artefact over several blocks is not a spike, and it spoils the continuum."""
    hit = star([(0, 480, 680, 1e-11)])
    assert to_lamost(hit).meta["flag"].tolist() == ["continuum_failed", "good", "good"]


@pytest.mark.parametrize("flux", [np.ones_like(GRID), 3e-17 + 2e-20 * (GRID - 4000)])
def test_spectra_without_lines_and_noise_are_flagged(flux):
    assert to_lamost(Spectra.build(GRID, flux)).meta["flag"].tolist() == ["featureless"]


def test_known_high_velocities_that_are_not_removed_are_flagged():
    redshift = [300 / 299792.458, np.nan, -200 / 299792.458]
    spectra = star(redshift=redshift)
    assert to_lamost(spectra).meta["flag"].tolist() == ["too_fast", "good", "good"]
    assert to_lamost(spectra, velocity_column="redshift").meta["flag"].tolist() == [
        "good",
        "no_velocity",
        "good",
    ]
    assert to_lamost(star(redshift=["a", "b", "c"])).meta["flag"].tolist() == ["good", "good", "good"]
