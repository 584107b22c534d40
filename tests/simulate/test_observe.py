import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import curve_fit

from specjax.errors import ConfigError
from specjax.preprocess.operators import SIGMA_PER_FWHM
from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.simulate.emulator import shipped
from specjax.simulate.instrument import PRESETS, Instrument
from specjax.simulate.observe import Optics, noiseless, observe

SUN = np.array([[5777.0, 4.44, 0.0, 0.0, 1.06]], np.float32)
IDEAL = Instrument(wavelength=(4000.0, 5500.0), step=1.0, fwhm=3.0, snr=(1e6, 1e6))
LINE = 4800.3

pytestmark = pytest.mark.usefixtures("quick_compilation")


def featureless(line_depth=0.0):
    """An emulator of one spectrum: a flat continuum, and a line at LINE as wide as its resolution."""
    whole = shipped()
    profile = np.exp(-0.5 * ((whole.wavelength - LINE) / (SIGMA_PER_FWHM * whole.fwhm)) ** 2)
    return dataclasses.replace(
        whole,
        mean=(1 - line_depth * profile).astype(np.float32),
        components=np.zeros_like(whole.components),
        continuum_mean=np.zeros_like(whole.continuum_mean),
        continuum_components=np.zeros_like(whole.continuum_components),
    )


def observed(instrument, emulator, n=1, seed=0, velocity=0.0, labels=SUN):
    optics, wavelength = Optics.of(instrument, emulator, seed)
    keys = jax.random.split(jax.random.key(seed), n)
    result = jax.jit(observe)(optics, keys, jnp.tile(labels, (n, 1)), jnp.full(n, velocity))
    return wavelength, jax.tree.map(np.asarray, result)


def measured(wavelength, flux):
    """Centre and FWHM of the line, by a Gaussian fit."""

    def model(x, depth, centre, sigma, level):
        return level - depth * np.exp(-0.5 * ((x - centre) / sigma) ** 2)

    near = np.abs(wavelength - LINE) < 60
    start = (flux.max() - flux.min(), LINE, 2.0, flux.max())
    _, centre, sigma, _ = curve_fit(model, wavelength[near], flux[near], start)[0]
    return centre, abs(sigma) / SIGMA_PER_FWHM


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"fwhm": 1.8, "step": 0.8},
        {"fwhm": 24.0},
        {"fwhm": None, "resolving_power": 1800.0, "step": None, "log_step": 1e-4},
    ],
)
def test_the_resolution_is_that_of_the_instrument_and_the_pixel(change):
    instrument = dataclasses.replace(IDEAL, **change)
    wavelength, found = observed(instrument, featureless(0.5))
    at = np.array([LINE])
    # A pixel has the variance of a box of its width.
    box = instrument.pixel_width(at)[0] / np.sqrt(12) / SIGMA_PER_FWHM
    expected = np.hypot(instrument.line_width(at)[0], box)
    centre, fwhm = measured(wavelength, found.flux[0])
    assert fwhm == pytest.approx(expected, rel=0.01)  # the fitted profile is not quite a Gaussian
    assert centre == pytest.approx(LINE, abs=0.01)


@pytest.mark.parametrize("velocity", [-200.0, 3.0, 137.0])
def test_a_velocity_shifts_the_line(velocity):
    wavelength, found = observed(IDEAL, featureless(0.5), velocity=velocity)
    centre, fwhm = measured(wavelength, found.flux[0])
    # A hundredth of a pixel is 0.6 km/s.
    assert centre == pytest.approx(LINE * (1 + velocity / SPEED_OF_LIGHT), abs=0.01)
    wavelength, at_rest = observed(IDEAL, featureless(0.5))
    assert fwhm == pytest.approx(measured(wavelength, at_rest.flux[0])[1], rel=0.01)
    assert found.velocity[0] == found.reported[0] == np.float32(velocity)


def test_a_wavelength_offset_shifts_every_line_by_the_same():
    wavelength, found = observed(dataclasses.replace(IDEAL, wavelength_offset=1.5), featureless(0.5))
    assert measured(wavelength, found.flux[0])[0] == pytest.approx(LINE + 1.5, abs=0.01)


def test_the_spectrum_is_that_of_the_emulator():
    emulator = shipped()
    optics, wavelength = Optics.of(IDEAL, emulator)
    flux = np.asarray(noiseless(optics, SUN, np.array([60.0])))[0]
    matrix = np.exp(
        -0.5
        * (
            (emulator.wavelength - wavelength[:, None] / (1 + 60 / SPEED_OF_LIGHT))
            / (SIGMA_PER_FWHM * np.sqrt(3.0**2 - 0.6**2 + (1 / np.sqrt(12) / SIGMA_PER_FWHM) ** 2))
        )
        ** 2
    ) * np.gradient(emulator.wavelength)
    lines = (matrix / matrix.sum(axis=1, keepdims=True)) @ np.asarray(emulator.flux(SUN))[0]
    level = np.interp(wavelength, emulator.wavelength, np.asarray(emulator.continuum(SUN))[0])
    expected = lines * level / (lines * level).mean()
    assert flux.mean() == pytest.approx(1, rel=1e-6)
    # The pixel is taken as a Gaussian of its variance here, and the spline errs by 5e-4 of a line's depth.
    np.testing.assert_allclose(flux, expected, atol=1.5e-3)


@pytest.mark.parametrize(
    ("change", "variance"),
    [
        ({"snr": (20.0, 20.0), "photon_noise": 0.0}, lambda flux: 1 / 400),
        ({"snr": (20.0, 20.0), "photon_noise": 0.75}, lambda flux: (0.25 + 0.75 * flux) / 400),
        ({"snr": None, "ivar": (100.0, 100.0)}, lambda flux: 1 / 100),
    ],
)
def test_noise_and_ivar_agree_with_the_instrument(change, variance):
    emulator = dataclasses.replace(featureless(), mean=np.linspace(0.2, 1.8, 5347).astype(np.float32))
    _, clean = observed(IDEAL, emulator)
    _, noisy = observed(dataclasses.replace(IDEAL, **change), emulator, n=300)
    np.testing.assert_allclose(
        1 / noisy.ivar, np.broadcast_to(variance(clean.flux), noisy.ivar.shape), rtol=1e-3
    )
    pulls = (noisy.flux - clean.flux) * np.sqrt(noisy.ivar)
    # 450,000 numbers determine the standard deviation to 0.1%, 300 rows that of a pixel to 4%.
    assert pulls.std() == pytest.approx(1, abs=0.005)
    assert np.abs(pulls.std(axis=0) - 1).max() < 0.2
    assert abs(np.corrcoef(pulls[:, 10], pulls[:, 11])[0, 1]) < 0.2


def test_signal_to_noise_ratios_are_log_uniform():
    _, found = observed(dataclasses.replace(IDEAL, snr=(10.0, 1000.0)), featureless(), n=500)
    assert 10 <= found.snr.min() < 11
    assert 900 < found.snr.max() <= 1000
    assert np.median(found.snr) == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize(
    ("change", "between", "within"),
    [
        ({"ripple": 0.02}, 0.02, 0.02),
        ({"common_ripple": 0.02}, 0.0, 0.02),
        ({"continuum_error": 0.05}, 0.05, 0.05),
    ],
)
def test_calibration_errors_have_their_sizes(change, between, within):
    _, found = observed(dataclasses.replace(IDEAL, **change), featureless(), n=400, seed=2)
    error = np.log(found.flux)
    # Few independent coefficients set the size: 24 of one realisation that is common to all.
    assert error.std(axis=0).mean() == pytest.approx(between, rel=0.1, abs=1e-4)
    assert np.sqrt((error**2).mean()) == pytest.approx(within, rel=0.5)


def test_scattered_light_fills_lines_up():
    _, clean = observed(IDEAL, featureless(0.5))
    _, found = observed(dataclasses.replace(IDEAL, scattered_light=0.2), featureless(0.5), n=300)
    added = found.flux - clean.flux
    np.testing.assert_allclose(added, added.mean(axis=1, keepdims=True) * np.ones(added.shape), atol=1e-4)
    assert 0 <= added.mean(axis=1).min() < 0.01
    assert 0.19 < added.mean(axis=1).max() <= 0.2


def test_missing_stretches_have_no_information():
    instrument = dataclasses.replace(IDEAL, missing_probability=0.4, missing_width=(20.0, 80.0))
    _, found = observed(instrument, featureless(), n=400)
    assert (found.flux[found.mask] == 0).all()
    assert (found.ivar[found.mask] == 0).all()
    assert (found.ivar[~found.mask] > 0).all()
    assert found.mask.any(axis=1).mean() == pytest.approx(0.4, abs=0.1)  # four standard deviations
    lengths = found.mask.sum(axis=1)[found.mask.any(axis=1)]
    assert lengths.max() <= 81
    assert (np.diff(found.mask.astype(int), axis=1) == 1).sum(axis=1).max() == 1  # one stretch


def test_reported_velocities_have_errors():
    _, found = observed(dataclasses.replace(IDEAL, velocity_error=8.0), featureless(), n=400, velocity=50.0)
    assert (found.velocity == 50).all()
    assert (found.reported - 50).std() == pytest.approx(8, rel=0.15)
    at_rest = dataclasses.replace(IDEAL, velocity_error=8.0, rest_frame=True)
    wavelength, rest = observed(at_rest, featureless(0.5), n=400, velocity=50.0)
    np.testing.assert_allclose(rest.velocity, 50 - rest.reported, atol=1e-4)
    centre, _ = measured(wavelength, rest.flux[0])
    assert centre == pytest.approx(LINE * (1 + rest.velocity[0] / SPEED_OF_LIGHT), abs=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_observe_stars(name):
    emulator = shipped()
    _, found = observed(PRESETS[name], emulator, n=4)
    pixels = found.flux.shape[1]
    chex.assert_shape(found[:3], (4, pixels))
    chex.assert_tree_all_finite(found)
    assert 0.7 < np.median(found.flux) < 1.4


def test_one_program_serves_instruments_of_the_same_shapes():
    program = jax.jit(lambda *arguments: observe(*arguments))  # with a cache of its own
    keys = jax.random.split(jax.random.key(0), 2)
    for change in (
        {},
        {"snr": (5.0, 5.0), "ripple": 0.1},
        {"scattered_light": 0.3, "wavelength_offset": 0.5},
    ):
        optics, _ = Optics.of(dataclasses.replace(IDEAL, **change), shipped())
        program(optics, keys, jnp.tile(SUN, (2, 1)), jnp.zeros(2))
    assert program._cache_size() == 1


def test_a_spectrum_depends_on_its_key_only():
    optics, _ = Optics.of(PRESETS["lamost"], shipped())
    keys = jax.random.split(jax.random.key(5), 4)
    labels = jnp.tile(SUN, (4, 1))
    whole = jax.jit(observe)(optics, keys, labels, jnp.zeros(4))
    part = jax.jit(observe)(optics, keys[2:3], labels[:1], jnp.zeros(1))
    # Batches differ by the rounding of the emulator's weighted sums.
    np.testing.assert_allclose(part.flux[0], whole.flux[2], atol=5e-4)
    assert np.abs(whole.flux[0] - whole.flux[1]).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fwhm": 0.5}, "0.72 A and more"),
        ({"wavelength": (6000.0, 7000.0)}, "has 0 pixels that the emulator can simulate"),
        ({"fwhm": 800.0}, "too coarse"),
    ],
)
def test_instruments_that_cannot_be_simulated_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Optics.of(dataclasses.replace(IDEAL, **change), shipped())
