import numpy as np
import pytest

from specjax.errors import ConfigError, DataError
from specjax.preprocess import to_lamost
from specjax.simulate.flaws import PIXEL, Flaws, spoil, throughput_shape
from specjax.simulate.grism import WAVELENGTH
from specjax.spectra import Spectra

GRID = np.arange(3300.0, 6200.0, 0.5)


def stars(n=3, depth=0.5, slope=0.0):
    """Spectra with the same narrow lines, at different fluxes."""
    lines = np.arange(3900.0, 5800.0, 50.0)
    profile = np.exp(-0.5 * ((GRID - lines[:, None]) / 1.5) ** 2).sum(axis=0)
    flux = (1 - depth * profile) * (1 + slope * (GRID - 4700) / 1000) * np.array([1.0, 3.0, 1e-13])[:n, None]
    return Spectra.build(GRID, flux, id=[f"HD{k}" for k in range(n)], medium="vacuum", survey="x")


def depths(spectra):
    """The depth of the deepest pixels relative to the continuum."""
    inside = (spectra.wavelength > 4000) & (spectra.wavelength < 5600)
    flux = spectra.flux[:, inside]
    return 1 - flux.min(axis=1) / flux.max(axis=1)


def test_without_flaws_only_the_pixels_change():
    plain = spoil(stars(), Flaws(), fwhm_from=3.0)
    np.testing.assert_array_equal(plain.wavelength, WAVELENGTH)
    assert not plain.mask.any()
    # Means over pixels of up to 1.3 A of lines with a sigma of 1.5 A are shallower by 3%.
    np.testing.assert_allclose(depths(plain), depths(stars()), rtol=0.04)


def test_scattered_light_makes_all_lines_shallower_by_the_same_factor():
    """Lines of depth d in a flux of 1 have the depth d/(1 + s): the pedestal is part of the continuum."""
    plain, lit = (spoil(stars(), Flaws(scattered_light=s), fwhm_from=3.0) for s in (0.0, 0.4))
    np.testing.assert_allclose(depths(lit), depths(plain) / 1.4, rtol=1e-3)


def test_scattered_light_survives_the_continuum():
    """What makes it a flaw: the continuum that is divided out contains it."""
    plain, lit = (to_lamost(spoil(stars(), Flaws(scattered_light=s), fwhm_from=3.0)).flux for s in (0.0, 0.4))
    ratio = (1 - lit).clip(0).sum(axis=1) / (1 - plain).clip(0).sum(axis=1)
    np.testing.assert_allclose(ratio, 1 / 1.4, rtol=0.1)  # the continuum of deep lines is a few percent low


@pytest.mark.parametrize("pixels", [-4.0, 1.0, 2.5])
def test_wavelengths_are_off_by_the_same_number_of_pixels_everywhere(pixels):
    plain, shifted = (spoil(stars(), Flaws(wavelength_offset=p), fwhm_from=3.0) for p in (0.0, pixels))
    np.testing.assert_array_equal(shifted.flux, plain.flux)
    np.testing.assert_allclose(np.log10(shifted.wavelength / plain.wavelength) / PIXEL, pixels, rtol=1e-9)


def test_a_throughput_error_multiplies_every_star_by_the_same_curve():
    plain, weak = (spoil(stars(), Flaws(throughput=t, seed=3), fwhm_from=3.0) for t in (0.0, 0.1))
    ratio = np.log(weak.flux / plain.flux)
    np.testing.assert_allclose(ratio, np.broadcast_to(0.1 * throughput_shape(3), ratio.shape), atol=1e-12)
    assert throughput_shape(3).std() == pytest.approx(1)
    assert throughput_shape(3).mean() == pytest.approx(0, abs=1e-12)
    assert (throughput_shape(4) != throughput_shape(3)).any()


def test_a_throughput_error_leaves_the_relative_uncertainties():
    noisy = spoil(stars(), Flaws(snr=30.0), fwhm_from=3.0)
    again = Spectra.build(WAVELENGTH, noisy.flux, noisy.ivar, id=noisy.id)
    weak, plain = (spoil(again, Flaws(throughput=t), fwhm_from=3.0) for t in (0.3, 0.0))
    both = ~plain.mask & ~weak.mask
    np.testing.assert_allclose(
        (weak.flux**2 * weak.ivar)[both], (plain.flux**2 * plain.ivar)[both], rtol=1e-9
    )


def test_the_resolution_is_the_total_one():
    """A line of 1.5 A sigma, taken for unresolved at the given FWHM, ends up as wide as was asked for."""
    wide = spoil(stars(), Flaws(fwhm=20.0), fwhm_from=1.5 * np.sqrt(8 * np.log(2)))
    line = np.abs(WAVELENGTH - 4700) < 25  # half way to the neighbours
    absorbed = (wide.flux.max(axis=1)[:, None] - wide.flux)[:, line]
    shape = np.exp(-4 * np.log(2) * (WAVELENGTH[line] - 4700) ** 2 / 20.0**2)
    for row in absorbed:
        assert np.corrcoef(row, shape)[0, 1] > 0.995  # the wings of the neighbours remain
    with pytest.raises(DataError, match="resolution"):
        spoil(stars(), Flaws(fwhm=2.0), fwhm_from=3.0)


def test_noise_has_the_stated_variance_and_ratio():
    flat = Spectra.build(GRID, np.full((50, GRID.size), 2.0), id=[f"s{k}" for k in range(50)])
    noisy = spoil(flat, Flaws(snr=20.0), fwhm_from=3.0)
    # The standard deviation of 94,250 draws is uncertain by 0.23%; the tolerance is four times that.
    np.testing.assert_allclose(np.std(noisy.flux - 2.0), 0.1, rtol=0.01)
    np.testing.assert_allclose(noisy.ivar, 100.0, rtol=1e-9)
    sloped = spoil(stars(depth=0.0, slope=0.8), Flaws(snr=10.0), fwhm_from=3.0)
    pull = (sloped.flux - spoil(stars(depth=0.0, slope=0.8), Flaws(), fwhm_from=3.0).flux) * sloped.ivar**0.5
    np.testing.assert_allclose(pull.std(axis=1), 1.0, rtol=0.07)  # 1885 draws: four times 1.6%


def test_noise_depends_only_on_the_star_and_the_seed():
    whole = spoil(stars(), Flaws(snr=10.0), fwhm_from=3.0)
    part = spoil(stars()[[2, 0]], Flaws(snr=10.0), fwhm_from=3.0)
    np.testing.assert_allclose(part.flux, whole.flux[[2, 0]], rtol=1e-12)
    assert (spoil(stars(), Flaws(snr=10.0, seed=1), fwhm_from=3.0).flux != whole.flux).all()


def test_a_spectrum_without_pixels_stays_without():
    empty = stars()
    empty = Spectra.build(GRID, empty.flux, mask=np.ones(empty.flux.shape, bool), id=empty.id)
    spoilt = spoil(empty, Flaws(scattered_light=0.2, snr=20.0), fwhm_from=3.0)
    assert spoilt.mask.all()
    assert not spoilt.ivar.any()


def test_masked_pixels_stay_masked():
    broken = stars()
    mask = np.zeros(broken.flux.shape, bool)
    mask[1, (GRID > 4500) & (GRID < 4600)] = True
    broken = Spectra.build(GRID, broken.flux, mask=mask, id=broken.id)
    spoilt = spoil(broken, Flaws(scattered_light=0.2, snr=20.0, throughput=0.1), fwhm_from=3.0)
    inside = (WAVELENGTH > 4502) & (WAVELENGTH < 4598)
    assert spoilt.mask[1, inside].all()
    assert not spoilt.mask[[0, 2]].any()


@pytest.mark.parametrize(
    "wrong", [{"snr": 0.0}, {"fwhm": -1.0}, {"scattered_light": -0.1}, {"wavelength_offset": np.inf}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Flaws(**wrong)
