"""Observed spectra, degraded as a slitless low-resolution survey would record them."""

import hashlib
from dataclasses import replace

import numpy as np

from specjax.errors import ConfigError
from specjax.preprocess.resample import crop, smooth
from specjax.spectra import Spectra
from specjax.typing import FloatArray

FWHM = 24.0
"""Spectral resolution of the slitless survey, Angstrom."""

SNR = 20.0
"""Signal-to-noise ratio per pixel of the LAMOST grid."""

# LAMOST pixels extended to 3700-5710 A, so that the continuum is fitted as for any survey.
WAVELENGTH: FloatArray = np.power(10.0, 3.602 + 1e-4 * np.arange(-338, 1547, dtype=np.float64))
"""(1885,) vacuum Angstrom, the grid of the degraded spectra; it includes LAMOST_WAVELENGTH."""


def degrade(
    spectra: Spectra, fwhm: float = FWHM, snr: float = SNR, seed: int = 0, *, fwhm_from: float = 3.0
) -> Spectra:
    """Lower the resolution of spectra and add noise, as a slitless spectrograph would.

    Each spectrum is smoothed by a Gaussian to a total FWHM of `fwhm`, evaluated on `WAVELENGTH`, and given
    Gaussian noise with a standard deviation of the flux over `snr` in each pixel. The noise of a star depends
    only on `seed` and its id, so it is the same in any order and any subset. The noise already present in the
    spectra, an order of magnitude smaller, is kept and not accounted for.

    Args:
        spectra: n observed spectra in air or vacuum, e.g. STELIB.
        fwhm: total FWHM to reach, Angstrom.
        snr: signal-to-noise ratio per pixel.
        seed: seed of the noise.
        fwhm_from: FWHM of the given spectra, Angstrom.

    Returns:
        (n, 1885) Spectra in vacuum, before continuum normalisation, with the inverse variance of the added
        noise. A pixel is masked if less than half of its smoothing kernel lies on valid pixels.

    Raises:
        ConfigError: `snr` is not positive.
        DataError: `fwhm` is below `fwhm_from`, or the spectra do not cover the range.
    """
    if not snr > 0:
        raise ConfigError(f"the signal-to-noise ratio must be positive, not {snr}")
    source = crop(spectra.to_vacuum(), WAVELENGTH[0] - 3 * fwhm, WAVELENGTH[-1] + 3 * fwhm)
    blurred = smooth(source, fwhm_from, fwhm, WAVELENGTH)
    sigma = np.abs(blurred.flux) / snr
    usable = ~blurred.mask & (sigma > 0)
    noise = np.stack([noise_of_star(seed, name) for name in spectra.id.tolist()])
    return replace(
        blurred,
        flux=np.where(usable, blurred.flux + sigma * noise, 0.0),
        ivar=np.divide(1.0, sigma**2, out=np.zeros_like(sigma), where=usable),
        mask=~usable,
        survey=f"{spectra.survey}-grism",
        has_ivar=True,
    )


def noise_of_star(seed: int, name: str) -> FloatArray:
    """Draw the (1885,) standard normal numbers of one star, which depend on the seed and its id alone."""
    digest = hashlib.sha256(name.encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u4").tolist()
    return np.random.default_rng([seed, *words]).standard_normal(WAVELENGTH.size)
