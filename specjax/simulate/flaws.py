"""Flaws of real instruments, put into observed spectra before the continuum is divided out.

The sizes are those of an experiment. That instruments have such flaws is known from

- scattered light: stray light in the Radial Velocity Spectrometer of Gaia (Cropper et al. 2018, A&A 616, A5),
  which dominates the background of most of its stars;
- wavelengths: a slitless spectrum has its zero point from the position of the source in a direct image, of
  which an error of a pixel is one of a pixel in wavelength (Kuemmel et al. 2009, PASP 121, 59);
- throughput: the response curves of the spectrographs of LAMOST vary by up to 30% in shape, and calibration
  leaves 10% (Xiang et al. 2015, MNRAS 448, 90; Du et al. 2016, ApJS 227, 27);
- resolution: that of a slitless spectrum is set by the seeing, 15 A and less in objective-prism surveys
  (Christlieb et al. 2008, A&A 484, 721), and by the design, a resolving power of 200 or 25 A at 5000 A for
  CSST (Gong et al. 2019, ApJ 883, 203);
- noise: surveys release spectra down to a signal-to-noise ratio of a few (Luo et al. 2015, RAA 15, 1095).
"""

from dataclasses import dataclass

import numpy as np

from specjax.errors import ConfigError
from specjax.preprocess.resample import crop, rebin, smooth
from specjax.simulate.grism import WAVELENGTH, noise_of_star
from specjax.spectra import Spectra
from specjax.typing import FloatArray

PIXEL = 1e-4
"""Width of a LAMOST pixel in log10 of the wavelength, 69 km/s."""

PHOTON_NOISE = 0.8
"""Share of the photons, of star and scattered light, in the variance at the mean flux, as in `Instrument`."""

_WAVES = 6  # of the throughput error
_PERIODS = (150.0, 1500.0)  # Angstrom


@dataclass(frozen=True, kw_only=True)
class Flaws:
    """What is wrong with the spectra of a survey, the same for all its stars; noise is drawn for each.

    Attributes:
        fwhm: resolution, Angstrom; None leaves that of the spectra.
        throughput: standard deviation over wavelength of the logarithm of the throughput that calibration
            leaves, a slope and waves with periods of 150 to 1500 A.
        scattered_light: constant added to a spectrum, in units of its median flux.
        snr: signal-to-noise ratio per LAMOST pixel at the median flux, of all light; None adds no noise.
        wavelength_offset: wavelength given minus the true one, in LAMOST pixels.
        seed: of the throughput and of the noise.

    Raises:
        ConfigError: a size that is not possible.
    """

    fwhm: float | None = None
    throughput: float = 0.0
    scattered_light: float = 0.0
    snr: float | None = None
    wavelength_offset: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("throughput", "scattered_light"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name):g}")
        for name in ("fwhm", "snr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ConfigError(f"{name} must be positive, not {value:g}")
        if not abs(self.wavelength_offset) < np.inf:
            raise ConfigError(f"wavelength_offset must be finite, not {self.wavelength_offset:g}")


def spoil(spectra: Spectra, flaws: Flaws, *, fwhm_from: float) -> Spectra:
    """Observe stars with an instrument that has these flaws, and pixels like those of LAMOST.

    The light is spread by the line-spread function, weakened by the throughput, joined by scattered light and
    counted with noise. The wavelengths are assigned last.

    Args:
        spectra: n flux-calibrated spectra in air or vacuum.
        flaws: of the instrument.
        fwhm_from: resolution of the spectra, Angstrom.

    Returns:
        (n, 1885) Spectra in vacuum on `grism.WAVELENGTH`, shifted by the error of the wavelengths. The noise
        that the spectra had is kept; the inverse variance is that of the noise added, if any is.

    Raises:
        DataError: the resolution is finer than that of the spectra, or they do not cover the range.
    """
    reach = 3 * (flaws.fwhm or fwhm_from)
    near = crop(spectra.to_vacuum(), WAVELENGTH[0] - reach, WAVELENGTH[-1] + reach)
    fwhm = flaws.fwhm
    seen = rebin(near, WAVELENGTH) if fwhm is None else smooth(near, fwhm_from, fwhm, WAVELENGTH)
    level = _median_flux(seen)
    response = np.exp(flaws.throughput * throughput_shape(flaws.seed))
    flux = seen.flux * response + flaws.scattered_light * np.abs(level)
    ivar = seen.ivar / response**2 if seen.has_ivar else seen.ivar  # else a placeholder
    result = seen.derive(flux=np.where(seen.mask, 0.0, flux), ivar=ivar)
    if flaws.snr is not None:
        result = _noisy(result, flaws.snr, flaws.seed)
    return result.derive(wavelength=WAVELENGTH * 10 ** (PIXEL * flaws.wavelength_offset))


def throughput_shape(seed: int) -> FloatArray:
    """Return the shape (1885,) of a throughput error on `grism.WAVELENGTH`: mean 0, standard deviation 1."""
    rng = np.random.default_rng([seed, 1])
    x = np.linspace(-1.0, 1.0, WAVELENGTH.size)
    shape = rng.choice([-1.0, 1.0]) * x
    for period in np.geomspace(*_PERIODS, _WAVES):
        phase = 2 * np.pi * (WAVELENGTH / period + rng.random())
        shape = shape + rng.normal() * np.sin(phase) / np.sqrt(_WAVES)
    shape = shape - shape.mean()
    return np.asarray(shape / shape.std())


def _noisy(spectra: Spectra, snr: float, seed: int) -> Spectra:
    """Add photon noise, and noise that is the same in all pixels, with a given S/N at the median flux."""
    level = _median_flux(spectra)
    usable = ~spectra.mask & (level > 0)
    relative = np.maximum(np.divide(spectra.flux, level, out=np.zeros(usable.shape), where=usable), 0.0)
    sigma = np.where(usable, level / snr * np.sqrt(PHOTON_NOISE * relative + 1 - PHOTON_NOISE), 1.0)
    noise = np.stack([noise_of_star(seed, name) for name in spectra.id.tolist()])
    return spectra.derive(
        flux=np.where(usable, spectra.flux + sigma * noise, 0.0),
        ivar=np.where(usable, sigma**-2.0, 0.0),
        mask=~usable,
        has_ivar=True,
    )


def _median_flux(spectra: Spectra) -> FloatArray:
    """Return the median flux (n, 1) over unmasked pixels, 0 for a spectrum without any."""
    rows = zip(spectra.flux, spectra.mask, strict=True)
    return np.array([np.median(flux[~mask]) if not mask.all() else 0.0 for flux, mask in rows])[:, None]
