import numpy as np
import pytest

from experiments import payne
from experiments.payne import Payne, calibration_errors, delivered_fwhm
from specjax.pretrain.config import StageConfig
from specjax.simulate.process import Shape
from tests import synthetic
from tests.simulate.test_labels import grid

PIXELS = 300


def labels(n, seed):
    """Teff in K, log g and [Fe/H] in dex, (n, 3)."""
    return np.random.default_rng(seed).uniform([4000, 1, -2], [7000, 5, 0.5], (n, 3))


def spectra(values, seed):
    """Spectra (n, PIXELS) of sixty lines whose depths follow the labels, with a little noise."""
    rng, lines = np.random.default_rng(seed), np.random.default_rng(99)
    standard = (values - [5500, 3, -0.75]) / [900, 1.2, 0.7]
    places, slopes = lines.uniform(5, PIXELS - 5, 60), 0.3 * lines.normal(size=(3, 60))
    depths = 0.15 * np.exp(standard @ slopes)
    shapes = np.exp(-0.5 * ((np.arange(PIXELS) - places[:, None]) / 1.5) ** 2)
    return 1 - depths @ shapes + 0.003 * rng.normal(size=(len(values), PIXELS))


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch, synthetic.quick_compilation():
        patch.setattr(payne, "STAGE", StageConfig(steps=300, batch=64, learning_rate=3e-3, chunk=300))
        yield


@pytest.fixture(scope="module")
def source():
    values = labels(150, 0)
    return spectra(values, 1).astype(np.float32), values


@pytest.fixture(scope="module")
def model(source, tmp_path_factory):
    return Payne.train(*source, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def standard(model):
    """Standardised labels well inside the box."""
    return 0.6 * model.labels[:8]


def noise(flux, sigma=0.0):
    return np.full(flux.shape, sigma**2)


def test_the_jacobian_agrees_with_finite_differences(model, standard):
    step = 0.01  # the flux is float32
    x = standard[0]
    differences = [(model.flux(x + h) - model.flux(x - h)) / (2 * step) for h in step * np.eye(3)]
    # Rounding leaves 1e-7 / step, and the third derivatives of order one leave step^2 / 6.
    np.testing.assert_allclose(model.jacobian(x), np.transpose(differences), atol=1e-4)


def test_recovers_the_labels_of_spectra_that_obey_the_model(model, standard):
    flux = model.flux(standard)
    found = (model.predict(flux, noise(flux)) - model.mean) / model.std
    np.testing.assert_allclose(found, standard, atol=2e-3)  # float32 and the tolerance of the fit


def test_errors_of_the_continuum_hardly_matter(model, standard):
    flux = model.flux(standard)
    error = np.random.default_rng(0).normal(size=25) @ calibration_errors(PIXELS)
    assert np.std(error) > 0.01
    found = (model.predict(flux * (1 + error), noise(flux)) - model.mean) / model.std
    assert (
        np.abs(found - standard).max() < 0.1
    )  # lines as deep as the error of 2% shift labels by several tenths


def test_predicts_stars_that_it_has_not_seen(model):
    values = labels(40, 2)
    flux = spectra(values, 3)
    found = model.predict(flux, noise(flux, 0.003))
    assert (np.std(found - values, axis=0) < 0.3 * np.std(values, axis=0)).all()


def test_pixels_without_weight_have_no_influence(model, standard):
    flux = model.flux(standard)
    variance = noise(flux)
    variance[:, 40:60] = np.inf
    first = model.predict(flux, variance)
    spoilt = flux.copy()
    spoilt[:, 40:60] += 0.5
    np.testing.assert_allclose(model.predict(spoilt, variance), first, rtol=1e-6)
    unaware = np.abs(model.predict(spoilt, noise(flux)) - first) / model.std
    assert unaware.max() > 0.1


def test_trains_once_per_corpus(source, tmp_path):
    said = []
    first = Payne.train(*source, tmp_path, said.append)
    again = Payne.train(*source, tmp_path, said.append)
    assert len(said) == 1
    np.testing.assert_array_equal(again.scatter, first.scatter)
    flux, values = source
    Payne.train(flux, values + 1.0, tmp_path, said.append)
    assert len(said) == 2


def test_the_model_is_smoothed_to_what_the_target_delivers():
    assert [delivered_fwhm(fwhm) for fwhm in (None, 2.0, 3.0)] == [2.5, 2.5, 3.0]
    assert delivered_fwhm(24.0) == pytest.approx(28.8)  # `to_lamost` smooths such spectra further


def test_labels_stay_within_those_of_the_source(model):
    wild = 1 + 0.5 * np.random.default_rng(4).normal(size=(3, PIXELS))
    found = model.predict(wild, noise(wild))
    low, high = (model.mean + model.std * bound for bound in (model.labels.min(0), model.labels.max(0)))
    assert ((found >= low) & (found <= high)).all()


def test_an_emulator_takes_the_place_of_the_network():
    """Spectra whose lines obey three of its five labels; the other two change nothing."""
    values = grid(150)
    flux = spectra(values[:, :3], 1)
    model = Payne.emulate(flux.astype(np.float32), values, Shape(np.array([1.5, 2.0, 2.0, 5.0, 5.0]), 1e-3))
    x = 0.5 * model.labels[0]
    differences = [(model.flux(x + h) - model.flux(x - h)) / 0.02 for h in 0.01 * np.eye(5)]
    np.testing.assert_allclose(model.jacobian(x), np.transpose(differences), atol=3e-4)  # float32 over 0.02
    truth = model.labels[:20]
    found = (model.predict(flux[:20], noise(flux[:20], 0.003)) - model.mean) / model.std
    assert (np.std(found[:, :3] - truth[:, :3], axis=0) < 0.3).all()
