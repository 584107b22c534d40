"""Data augmentation with differences between surveys, such as resolution, velocity, continuum and noise.

A model trained on spectra of a single instrument adopts the signature of that instrument. The augmentation is
applied to flux on the LAMOST grid (69 km/s per pixel), in JAX, inside the training step.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from specjax.errors import ConfigError
from specjax.models.products import matmul

_PAD = 69  # pixels added at either end before the Fourier transform: 1462 + 2 x 69 = 1600 = 2^6 5^2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Ranges of the augmentation. A range (0, 0), or a size of 0, switches its part off.

    Attributes:
        smoothing: Gaussian sigma in pixels, drawn log-uniformly.
        shift: largest shift in pixels, in either direction, drawn uniformly.
        continuum: standard deviation of the Chebyshev coefficients up to `continuum_degree` of a relative
            error: errors of the continuum fit.
        continuum_degree: see `continuum`.
        response: the same beyond `continuum_degree`, up to `response_degree`: errors of the flux calibration.
            Those of MILES and STELIB differ by one to two percent on scales of 60 A and more, by the same
            pattern for all stars.
        response_degree: see `response`.
        noise: standard deviation per pixel, relative to the continuum, drawn log-uniformly.
        mixing: largest weight of a neighbour in label space, see `mix`.
        moving: standard deviation of the change of each standardised label, see `label_model`.
        degraded_probability: probability of drawing a star at one of its lower resolutions.
        degraded_noise: as `noise`, for degraded copies, whose noise is smoothed as preprocessing smooths it.
        observed_probability: probability of an observed star without labels in place of a simulated one.
        gap_probability: probability of one missing stretch.
        gap_width: largest width of that stretch in pixels.

    Raises:
        ConfigError: a range that is neither (0, 0) nor positive and ascending.
    """

    smoothing: tuple[float, float] = (0.3, 2.5)
    shift: float = 1.5
    continuum: float = 0.02
    continuum_degree: int = 6
    response: float = 0.004
    response_degree: int = 24
    noise: tuple[float, float] = (0.003, 0.03)
    mixing: float = 0.5
    moving: float = 0.3
    degraded_probability: float = 0.0
    degraded_noise: tuple[float, float] = (0.01, 0.08)
    observed_probability: float = 0.0
    gap_probability: float = 0.1
    gap_width: int = 250

    def __post_init__(self) -> None:
        for name in ("smoothing", "noise", "degraded_noise"):
            low, high = getattr(self, name)
            if not (0 < low <= high or low == high == 0):
                raise ConfigError(f"{name} must be (0, 0) or a range of positive numbers, not {(low, high)}")


def augment(
    key: jax.Array,
    flux: jax.Array,
    config: AugmentConfig,
    degraded: jax.Array | None = None,
    noise_width: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Augment continuum-normalised spectra.

    Args:
        key: random key.
        flux: (n, p).
        config: ranges of the augmentation.
        degraded: (n,) bool, True for spectra of lower resolution; None means that there are none.
        noise_width: (n,) Gaussian sigma in pixels by which preprocessing smooths each of those.

    Returns:
        The flux (n, p) and valid (n, p) bool, False in the stretches to treat as missing.
    """
    chex.assert_rank(flux, 2)
    n, pixels = flux.shape
    keys = jax.random.split(key, 6)
    smoothing = _log_uniform(keys[0], (n, 1), config.smoothing)
    shift = jax.random.uniform(keys[1], (n, 1), minval=-config.shift, maxval=config.shift)
    flux = smooth_and_shift(flux, smoothing, shift)
    flux = flux * (1 + _calibration_error(keys[2], n, pixels, config))
    noise = _log_uniform(keys[3], (n, 1), config.noise)
    pattern = jax.random.normal(keys[4], flux.shape)
    if degraded is not None and noise_width is not None:
        noise = jnp.where(degraded[:, None], _log_uniform(keys[3], (n, 1), config.degraded_noise), noise)
        pattern = smooth_and_shift(pattern, noise_width[:, None], jnp.zeros((n, 1)))
    return flux + noise * pattern, ~_gaps(keys[5], n, pixels, config)


def smooth_and_shift(flux: jax.Array, sigma: jax.Array, shift: jax.Array) -> jax.Array:
    """Convolve (n, p) with Gaussians of sigma (n, 1) pixels and shift by (n, 1) pixels to the red.

    The operation is done in Fourier space, with the first and last values repeated beyond the ends.
    """
    pixels = flux.shape[-1]
    frequency = jnp.fft.rfftfreq(pixels + 2 * _PAD)
    transfer = jnp.exp(-2 * (jnp.pi * sigma * frequency) ** 2 - 2j * jnp.pi * shift * frequency)
    spectrum = jnp.fft.rfft(jnp.pad(flux, ((0, 0), (_PAD, _PAD)), mode="edge"))
    return jnp.fft.irfft(spectrum * transfer, n=pixels + 2 * _PAD)[:, _PAD:-_PAD]


def mix(
    key: jax.Array, index: jax.Array, neighbours: jax.Array, mixing: float
) -> tuple[jax.Array, jax.Array]:
    """Draw a neighbour in label space and its weight in a mixture, for each of the stars `index` (n,).

    Between neighbours flux and labels are close to linear, so that the mixed spectrum with the mixed labels
    is a new and nearly correct example.

    Args:
        key: random key.
        index: (n,) star indices.
        neighbours: (stars, k) indices of the neighbours of each star.
        mixing: largest weight.

    Returns:
        The neighbours (n,) and their weights (n, 1), uniform in [0, mixing].
    """
    which, share = jax.random.split(key)
    column = jax.random.randint(which, index.shape, 0, neighbours.shape[1])
    return neighbours[index, column], jax.random.uniform(share, (*index.shape, 1), maxval=mixing)


def extend_blue(key: jax.Array, flux: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Extrapolate a random half of the XP spectra (n, p) to the blue end by a line of random slope.

    No source star is observed below 354 nm, but real XP spectra and those of other surveys are. Without the
    extrapolation the weights of those samples would keep their random initial values, which would spoil the
    embedding of a spectrum that covers them.

    Returns:
        The flux (n, p) and valid (n, p) bool.
    """
    tilt, half = jax.random.split(key)
    first = jnp.argmax(valid, axis=1)[:, None]
    slope = jax.random.uniform(tilt, first.shape, minval=-0.8, maxval=0.3)
    distance = jnp.maximum(first - jnp.arange(flux.shape[1]), 0) / jnp.maximum(first, 1)
    line = jnp.take_along_axis(flux, first, axis=1) * (1 + slope * distance)
    extended = (distance > 0) & jax.random.bernoulli(half, 0.5, first.shape)
    return jnp.where(extended, line, flux), valid | extended


def _calibration_error(key: jax.Array, n: int, pixels: int, config: AugmentConfig) -> jax.Array:
    """Draw relative errors (n, p) of the continuum and, on smaller scales, of the flux calibration."""
    degree = max(config.continuum_degree, config.response_degree)
    size = jnp.where(jnp.arange(degree + 1) <= config.continuum_degree, config.continuum, config.response)
    return matmul(size * jax.random.normal(key, (n, degree + 1)), chebyshev(pixels, degree))


def _log_uniform(key: jax.Array, shape: tuple[int, ...], bounds: tuple[float, float]) -> jax.Array:
    if not bounds[1]:
        return jnp.zeros(shape)
    low, high = jnp.log(jnp.asarray(bounds))
    return jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))


def chebyshev(pixels: int, degree: int) -> jax.Array:
    """Return the Chebyshev polynomials (degree + 1, p) from one end of a spectrum to the other."""
    angle = jnp.arccos(jnp.linspace(-1, 1, pixels))
    return jnp.cos(jnp.arange(degree + 1)[:, None] * angle)


def _gaps(key: jax.Array, n: int, pixels: int, config: AugmentConfig) -> jax.Array:
    chance, centre, width = jax.random.split(key, 3)
    present = jax.random.bernoulli(chance, config.gap_probability, (n, 1))
    middle = jax.random.uniform(centre, (n, 1), maxval=pixels)
    half = 0.5 * config.gap_width * jax.random.uniform(width, (n, 1))
    return present & (jnp.abs(jnp.arange(pixels) - middle) < half)
