"""What distinguishes one survey from the next, drawn at random: resolution, velocity, continuum, noise.

A model that has seen its source stars only as one instrument saw them learns that instrument. These
variations are applied to flux on the LAMOST grid (69 km/s a pixel), in JAX, inside the training step.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from specjax.errors import ConfigError

_PAD = 69  # pixels repeated at either end before the Fourier transform: 1462 + 2 x 69 = 1600 = 2^6 5^2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Ranges of the variations. Gaussian widths and shifts are in grid pixels, noise and continuum relative.

    smoothing and noise are drawn log-uniformly, the shift uniformly within +-shift. The flux is multiplied by
    1 + a Chebyshev series with normal coefficients: of size `continuum` up to continuum_degree, the errors of
    a continuum, and of size `response` beyond, up to response_degree, the errors of a flux calibration:
    those of MILES and STELIB differ by one to two percent on scales of 60 A and more, the same for all stars.
    mixing is the largest share of a label-space neighbour; moving the standard deviation by which a star is
    moved in each standardised label (`label_model`). rendition_probability is that of a star at one of its
    lower resolutions, whose noise is drawn from rendition_noise and smoothed as preprocessing smooths it.
    gap_probability is the chance of one missing stretch of up to gap_width pixels. A range (0, 0) leaves its
    variation out.

    Raises:
        ConfigError: a range that is neither that nor positive and ascending.
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
    rendition_probability: float = 0.0
    rendition_noise: tuple[float, float] = (0.01, 0.08)
    gap_probability: float = 0.1
    gap_width: int = 250

    def __post_init__(self) -> None:
        for name in ("smoothing", "noise", "rendition_noise"):
            low, high = getattr(self, name)
            if not (0 < low <= high or low == high == 0):
                raise ConfigError(f"{name} must be (0, 0) or a range of positive numbers, not {(low, high)}")


def augment(
    key: jax.Array,
    flux: jax.Array,
    config: AugmentConfig,
    rendered: jax.Array | None = None,
    noise_width: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Vary spectra (n, p), normalised to a continuum of 1.

    rendered (n,) bool says which are at a lower resolution, None that none is, and noise_width (n,) by how
    many pixels (Gaussian sigma) preprocessing has smoothed each of those.

    Returns (flux (n, p), valid (n, p) bool): valid is False in the stretches that are to count as missing.
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
    if rendered is not None and noise_width is not None:
        noise = jnp.where(rendered[:, None], _log_uniform(keys[3], (n, 1), config.rendition_noise), noise)
        pattern = smooth_and_shift(pattern, noise_width[:, None], jnp.zeros((n, 1)))
    return flux + noise * pattern, ~_gaps(keys[5], n, pixels, config)


def _calibration_error(key: jax.Array, n: int, pixels: int, config: AugmentConfig) -> jax.Array:
    """Relative errors (n, p) of the continuum and, on finer scales, of the flux calibration."""
    degree = max(config.continuum_degree, config.response_degree)
    size = jnp.where(jnp.arange(degree + 1) <= config.continuum_degree, config.continuum, config.response)
    return (size * jax.random.normal(key, (n, degree + 1))) @ _chebyshev(pixels, degree)


def smooth_and_shift(flux: jax.Array, sigma: jax.Array, shift: jax.Array) -> jax.Array:
    """Convolve (n, p) with Gaussians of sigma (n, 1) pixels and move by shift (n, 1) pixels to the red.

    Done in Fourier space, with the end values repeated beyond the ends.
    """
    pixels = flux.shape[-1]
    frequency = jnp.fft.rfftfreq(pixels + 2 * _PAD)
    transfer = jnp.exp(-2 * (jnp.pi * sigma * frequency) ** 2 - 2j * jnp.pi * shift * frequency)
    spectrum = jnp.fft.rfft(jnp.pad(flux, ((0, 0), (_PAD, _PAD)), mode="edge"))
    return jnp.fft.irfft(spectrum * transfer, n=pixels + 2 * _PAD)[:, _PAD:-_PAD]


def mix(
    key: jax.Array, index: jax.Array, neighbours: jax.Array, mixing: float
) -> tuple[jax.Array, jax.Array]:
    """Choose for stars `index` (n,) one of their label-space neighbours (stars, k) and its share in a mix.

    Returns (partner (n,), share (n, 1)) with shares uniform in [0, mixing]. Between neighbours flux and
    labels are close to linear, so the mixed spectrum with the mixed labels is a new, nearly right example.
    """
    which, share = jax.random.split(key)
    column = jax.random.randint(which, index.shape, 0, neighbours.shape[1])
    return neighbours[index, column], jax.random.uniform(share, (*index.shape, 1), maxval=mixing)


def _log_uniform(key: jax.Array, shape: tuple[int, ...], bounds: tuple[float, float]) -> jax.Array:
    if not bounds[1]:
        return jnp.zeros(shape)
    low, high = jnp.log(jnp.asarray(bounds))
    return jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))


def _chebyshev(pixels: int, degree: int) -> jax.Array:
    angle = jnp.arccos(jnp.linspace(-1, 1, pixels))
    return jnp.cos(jnp.arange(degree + 1)[:, None] * angle)  # (degree + 1, p)


def _gaps(key: jax.Array, n: int, pixels: int, config: AugmentConfig) -> jax.Array:
    chance, centre, width = jax.random.split(key, 3)
    happens = jax.random.bernoulli(chance, config.gap_probability, (n, 1))
    middle = jax.random.uniform(centre, (n, 1), maxval=pixels)
    half = 0.5 * config.gap_width * jax.random.uniform(width, (n, 1))
    return happens & (jnp.abs(jnp.arange(pixels) - middle) < half)
