import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from experiments import source
from specjax.preprocess import PrincipalFill, to_lamost
from specjax.pretrain import simulated
from specjax.pretrain.corpus import Pairs
from specjax.spectra import Spectra
from tests.pretrain.test_simulated import emulator, library


def test_observed_stars_are_smoothed_before_their_continuum_is_fitted(monkeypatch, tmp_path):
    rng = np.random.default_rng(5)
    wavelength, names = np.arange(3540.0, 7410.0, 0.9), np.array([*"ABCDEFGHIJ"])
    flux = gaussian_filter1d(1 + 0.5 * rng.normal(size=(10, wavelength.size)), 1.2, axis=1)  # FWHM of 2.5 A
    stars = Spectra.build(wavelength, flux, meta={"name": names}, medium="air")
    monkeypatch.setattr(source.miles, "read", lambda folder: stars)
    order = [2, 0, 5, 6, 7, 8, 9]
    lamost = to_lamost(stars[order])
    assert not lamost.mask.any()
    fill = PrincipalFill.fit(lamost.flux, lamost.mask, 1)
    pairs = Pairs(
        flux=lamost.flux.astype(np.float32),
        xp_flux=np.zeros((7, 343), np.float32),
        xp_valid=np.zeros((7, 343), bool),
        labels=rng.normal(size=(7, 3)),
        id=names[order],
    )
    monkeypatch.setattr(source.corpus, "build", lambda folder, say: (pairs, fill))
    made = source.observed_source(tmp_path)
    same, blurred = made.smoothed(2.5), made.smoothed(28.8)
    np.testing.assert_array_equal(same, pairs.flux)  # the stars of the corpus, in its order
    assert np.abs(np.diff(same, axis=1)).mean() > 5 * np.abs(np.diff(blurred, axis=1)).mean()
    assert made.labels is pairs.labels


def test_simulated_stars_are_those_of_the_emulator(monkeypatch, tmp_path):
    small = emulator(130)
    monkeypatch.setattr(source, "shipped", lambda: small)
    monkeypatch.setattr(source.mastar, "read", lambda folder: library())
    made = source.simulated_source(tmp_path)
    stars = simulated.build(small, library())
    np.testing.assert_array_equal(made.labels, stars.labels)
    np.testing.assert_array_equal(made.shape.length, small.shape.length)
    np.testing.assert_array_equal(made.flux, stars.flux[:, 0])
    blurred = made.smoothed(28.8)
    assert blurred.shape == made.flux.shape
    # Lines of 3.6 A are blurred to a depth of an eighth.
    assert blurred.std(axis=1).mean() == pytest.approx(made.flux.std(axis=1).mean() / 5, rel=0.6)
