"""Observation of emulated spectra with an instrument: pure functions of labels, velocities and random keys.

`Optics` holds everything that can be computed once for an instrument. Its emulator predicts spectra at the
instrument's resolution on a logarithmic grid; what remains per star are a velocity, errors and noise.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import legendre
from scipy import ndimage, sparse
from scipy.special import ndtr

from specjax.errors import ConfigError
from specjax.preprocess.operators import SIGMA_PER_FWHM, pixel_edges
from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.simulate.emulator import Emulator
from specjax.simulate.instrument import Instrument
from specjax.simulate.population import MAX_VELOCITY
from specjax.simulate.process import LabelProcess
from specjax.typing import FloatArray

FINEST = 1.2
"""Finest resolution that can be simulated, in units of the emulator's FWHM."""

_REACH = 3.5  # standard deviations of the line-spread function that must lie on the emulator's range
_SAMPLES = 2.0  # of the intermediate grid per standard deviation; a spline errs by 5e-4 of a line's depth
_BEYOND = 2  # steps of that grid beyond either end, as support of the spline
_WAVES = 12  # periods of the ripples, each with a sine and a cosine
_DEGREE = 3  # of the continuum errors


class Optics(NamedTuple):
    """An instrument and an emulator, as the arrays of a pytree: one program serves all of the same shapes.

    Attributes:
        process: predicts the scores of the components from labels.
        lines: (1 + c, g) spline coefficients of the mean and the components of the flux over the continuum,
            at the instrument's resolution on a grid uniform in ln(wavelength).
        continuum: (1 + d, m) mean and components of the logarithm of the continuum at the pixels.
        position: (m,) place of the pixels on that grid, for a star at rest.
        per_velocity: grid steps per unit of ln(1 + v/c).
        errors: (k, m) shapes of the relative errors, times their standard deviations.
        response: (m,) the flux calibration that all spectra share.
        wavelength: (m,) vacuum Angstrom.
        snr: (2,) logarithms of the range of the S/N at the mean flux.
        photon_noise: share of the star's photons in the variance.
        velocity_error: km/s.
        rest_frame: 1 if reported velocities are removed, else 0.
        scattered_light: largest constant.
        missing: probability, and logarithms of the range of the width in Angstrom.
    """

    process: LabelProcess
    lines: jax.Array
    continuum: jax.Array
    position: jax.Array
    per_velocity: jax.Array
    errors: jax.Array
    response: jax.Array
    wavelength: jax.Array
    snr: jax.Array
    photon_noise: jax.Array
    velocity_error: jax.Array
    rest_frame: jax.Array
    scattered_light: jax.Array
    missing: jax.Array

    @classmethod
    def of(cls, instrument: Instrument, emulator: Emulator, seed: int = 0) -> tuple["Optics", FloatArray]:
        """Prepare the observation with an instrument.

        Args:
            instrument: the instrument.
            emulator: of the stars.
            seed: of the flux calibration that all spectra share.

        Returns:
            The optics, and the wavelengths (m,) in vacuum Angstrom of the pixels that can be simulated.

        Raises:
            ConfigError: the resolution is finer than that of the emulator, or the instrument does not overlap
                with it.
        """
        grid, step = _intermediate_grid(instrument, emulator)
        mapped = emulator.mapped(line_spread(instrument, emulator, grid), grid, float("nan"))
        rows = np.concatenate([mapped.mean[None], mapped.components]).astype(np.float64)
        pixels = instrument.pixels()
        position = (np.log(pixels - instrument.wavelength_offset) - np.log(grid[0])) / step
        fastest = MAX_VELOCITY + 5 * instrument.velocity_error
        margin = _BEYOND + np.log1p(fastest / SPEED_OF_LIGHT) / step
        covered = (position >= margin) & (position <= grid.size - 1 - margin)
        if covered.sum() < 10:
            raise ConfigError(
                f"instrument {instrument.name} has {covered.sum()} pixels that the emulator can simulate,"
                f" {grid[_BEYOND]:.0f}-{grid[-1 - _BEYOND]:.0f} A at this resolution"
            )
        wavelength = pixels[covered]
        ripples = _ripples(wavelength, instrument.ripple_period)
        phases = np.random.default_rng(seed).standard_normal(len(ripples))
        arrays = {
            "lines": ndimage.spline_filter1d(rows, order=3, axis=1, mode="mirror"),
            "continuum": _at(emulator, wavelength),
            "position": position[covered],
            "per_velocity": 1 / step,
            "errors": np.concatenate(
                [instrument.ripple * ripples, instrument.continuum_error * _slow(wavelength)]
            ),
            "response": np.exp(instrument.common_ripple * phases @ ripples),
            "wavelength": wavelength,
            "snr": np.log(instrument.snr_range),
            "photon_noise": instrument.photon_noise if instrument.snr else 0.0,
            "velocity_error": instrument.velocity_error,
            "rest_frame": float(instrument.rest_frame),
            "scattered_light": instrument.scattered_light,
            "missing": [instrument.missing_probability, *np.log(instrument.missing_width)],
        }
        singles = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
        return cls(process=LabelProcess(*map(jnp.asarray, emulator.process)), **singles), wavelength


class Observation(NamedTuple):
    """n observed spectra.

    Attributes:
        flux: (n, m) in units of the mean flux of the star without errors; 0 where it is missing.
        ivar: (n, m) inverse variance, 0 where the spectrum is missing.
        mask: (n, m) True where it is missing.
        snr: (n,) S/N per pixel at the mean flux.
        velocity: (n,) km/s by which the spectrum is shifted.
        reported: (n,) velocity in km/s as reported by the survey, with its error.
    """

    flux: jax.Array
    ivar: jax.Array
    mask: jax.Array
    snr: jax.Array
    velocity: jax.Array
    reported: jax.Array


def observe(optics: Optics, keys: jax.Array, labels: jax.Array, velocity: jax.Array) -> Observation:
    """Observe stars.

    A pure function that can be jitted and differentiated by the labels. It does not check the domain of the
    emulator.

    Args:
        optics: of the instrument.
        keys: (n,) random keys, on which alone the errors and the noise of a spectrum depend.
        labels: (n, 5), see `labels.LABELS`.
        velocity: (n,) radial velocities, km/s, at most `population.MAX_VELOCITY` in size.
    """
    chex.assert_shape(labels, (len(keys), 5))
    chex.assert_shape(velocity, (len(keys),))
    pixels = optics.position.shape[0]
    draws = jax.vmap(lambda key: _draw(key, len(optics.errors), pixels))(keys)
    error = optics.velocity_error * draws.normal[:, -1]
    shift = jnp.where(optics.rest_frame > 0, -error, velocity)
    flux = noiseless(optics, labels, shift)
    wiggle = jnp.matmul(draws.normal[:, :-1], optics.errors, precision="highest")
    flux = flux * optics.response * jnp.exp(wiggle)
    flux = flux + optics.scattered_light * draws.uniform[:, :1]
    snr = jnp.exp(optics.snr[0] + (optics.snr[1] - optics.snr[0]) * draws.uniform[:, 1])
    photons = optics.photon_noise * jnp.maximum(flux, 0.0)
    variance = (photons + 1 - optics.photon_noise) / snr[:, None] ** 2
    # With photon noise alone, a pixel without flux would have no variance.
    variance = jnp.maximum(variance, 1e-4 / snr[:, None] ** 2)
    flux = flux + jnp.sqrt(variance) * draws.noise
    missing = _missing(optics, draws.uniform[:, 2:])
    return Observation(
        flux=jnp.where(missing, 0.0, flux),
        ivar=jnp.where(missing, 0.0, 1 / variance),
        mask=missing,
        snr=snr,
        velocity=shift,
        reported=velocity + error,
    )


def noiseless(optics: Optics, labels: jax.Array, velocity: jax.Array) -> jax.Array:
    """Return the flux (n, m) of stars (n, 5) at velocities (n,) without errors, with a mean of 1."""
    scores = optics.process(labels)
    count = len(optics.lines) - 1
    lines = optics.lines[0] + jnp.matmul(scores[:, :count], optics.lines[1:], precision="highest")
    shifted = _spline(lines, optics.position, optics.per_velocity * jnp.log1p(velocity / SPEED_OF_LIGHT))
    level = jnp.matmul(scores[:, count:], optics.continuum[1:], precision="highest")
    flux = shifted * jnp.exp(level + optics.continuum[0])
    return flux / flux.mean(axis=1, keepdims=True)


def line_spread(instrument: Instrument, emulator: Emulator, grid: FloatArray) -> sparse.csr_array:
    """Return the matrix (g, p) from the emulator's pixels to the instrument's resolution on a grid (g,).

    Its rows are the line-spread function, less the emulator's own width in quadrature, convolved with the
    pixel.
    """
    source, width = emulator.wavelength, np.diff(pixel_edges(emulator.wavelength))
    sigma = SIGMA_PER_FWHM * np.sqrt(instrument.line_width(grid) ** 2 - emulator.fwhm**2)
    half = 0.5 * instrument.pixel_width(grid)
    low = np.searchsorted(source, grid - 5 * sigma - half)
    count = np.searchsorted(source, grid + 5 * sigma + half) - low
    row = np.repeat(np.arange(grid.size), count)
    column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    distance = source[column] - grid[row]
    kernel = ndtr((distance + half[row]) / sigma[row]) - ndtr((distance - half[row]) / sigma[row])
    matrix = sparse.csr_array((kernel * width[column], (row, column)), shape=(grid.size, source.size))
    return sparse.diags_array(1 / np.asarray(matrix.sum(axis=1))).tocsr() @ matrix


def _intermediate_grid(instrument: Instrument, emulator: Emulator) -> tuple[FloatArray, float]:
    """Return wavelengths uniform in their logarithm and the step.

    The emulator covers the line-spread function at all but the `_BEYOND` outermost points at either end.
    """
    inner = emulator.wavelength
    width = instrument.line_width(inner)
    if width.min() < FINEST * emulator.fwhm:
        raise ConfigError(
            f"instrument {instrument.name} has a FWHM of {width.min():.2g} A; the emulator, of"
            f" {emulator.fwhm:g} A, can simulate {FINEST * emulator.fwhm:.2g} A and more"
        )
    reach = _REACH * SIGMA_PER_FWHM * width + 0.5 * instrument.pixel_width(inner)
    first, last = inner[0] + reach[0], inner[-1] - reach[-1]
    step = float((SIGMA_PER_FWHM * width / inner).min() / _SAMPLES)
    if last < first * np.exp(10 * step):
        raise ConfigError(f"instrument {instrument.name} is too coarse for the range of the emulator")
    count = int(np.log(last / first) / step) + 1
    return first * np.exp(step * np.arange(-_BEYOND, count + _BEYOND)), step


def _at(emulator: Emulator, wavelength: FloatArray) -> FloatArray:
    """Return mean and components (1 + d, m) of the continuum's logarithm, the mean less its own mean."""
    rows = [emulator.continuum_mean, *emulator.continuum_components]
    at = np.stack([np.interp(wavelength, emulator.continuum_wavelength, row) for row in rows])
    at[0] -= at[0].mean()
    return at


def _ripples(wavelength: FloatArray, periods: tuple[float, float]) -> FloatArray:
    """Return sines and cosines (2 w, m) that, with normal coefficients, have a standard deviation of 1."""
    phase = 2 * np.pi * wavelength / np.geomspace(*periods, _WAVES)[:, None]
    return np.concatenate([np.sin(phase), np.cos(phase)]) / math.sqrt(_WAVES)


def _slow(wavelength: FloatArray) -> FloatArray:
    """Return Legendre polynomials (3, m) that, with normal coefficients, have a standard deviation of 1."""
    x = np.interp(wavelength, wavelength[[0, -1]], [-1.0, 1.0])
    degrees = np.arange(1, _DEGREE + 1)
    shapes = legendre.legvander(x, _DEGREE).T[1:]
    return np.asarray(shapes * np.sqrt((2 * degrees[:, None] + 1) / _DEGREE))


class _Draws(NamedTuple):
    """Random numbers of one spectrum: normal (k + 1,), uniform (5,), noise (m,)."""

    normal: jax.Array
    uniform: jax.Array
    noise: jax.Array


def _draw(key: jax.Array, errors: int, pixels: int) -> _Draws:
    one, two, three = jax.random.split(key, 3)
    return _Draws(
        normal=jax.random.normal(one, (errors + 1,)),
        uniform=jax.random.uniform(two, (5,)),
        noise=jax.random.normal(three, (pixels,)),
    )


def _spline(coefficients: jax.Array, position: jax.Array, shift: jax.Array) -> jax.Array:
    """Evaluate cubic splines (n, g) at positions (m,) minus a shift per row (n,)."""
    at = position - shift[:, None]  # (n, m)
    below = jnp.floor(at)
    t = at - below
    start = below.astype(jnp.int32) - 1
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )

    def tap(k: int) -> jax.Array:
        taken = jnp.take_along_axis(coefficients, start + k, axis=1, mode="clip")
        return taken * weights[k]

    return tap(0) + tap(1) + tap(2) + tap(3)


def _missing(optics: Optics, uniform: jax.Array) -> jax.Array:
    """Return (n, m) True in a random stretch of some spectra, for uniform random numbers (n, 3)."""
    probability, low, high = optics.missing
    present = uniform[:, :1] < probability
    first, last = optics.wavelength[0], optics.wavelength[-1]
    centre = first + (last - first) * uniform[:, 1:2]
    width = jnp.exp(low + (high - low) * uniform[:, 2:])
    missing: jax.Array = present & (jnp.abs(optics.wavelength - centre) < 0.5 * width)
    return missing
