"""Observed spectra as a slitless low-resolution survey would deliver them: a hard target of real stars."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from specjax.errors import ConfigError
from specjax.preprocess.resample import crop, smooth
from specjax.spectra import Spectra
from specjax.typing import FloatArray

FWHM = 24.0
"""Resolution of the slitless survey, Angstrom."""

SNR = 20.0
"""Signal to noise of one LAMOST-grid pixel."""

# LAMOST pixels continued to 3700-5710 A, so that the continuum is found as for any survey.
WAVELENGTH: FloatArray = np.power(10.0, 3.602 + 1e-4 * np.arange(-338, 1547, dtype=np.float64))
"""(1885,) vacuum Angstrom, the grid of the degraded spectra; LAMOST_WAVELENGTH is part of it."""


def degrade(
    spectra: Spectra, fwhm: float = FWHM, snr: float = SNR, seed: int = 0, *, fwhm_from: float = 3.0
) -> Spectra:
    """The same stars through a slitless spectrograph: lower resolution, then noise.

    Each spectrum is smoothed by a Gaussian to a total FWHM of `fwhm`, evaluated on `WAVELENGTH`, and given
    Gaussian noise whose standard deviation is the flux over `snr` in every pixel. A star's noise depends on
    `seed` and its id alone, so it is the same in any order and any subset. The noise that the
    spectra already have is left in and not counted: it is an order of magnitude below.

    Args:
      spectra: n observed spectra in air or vacuum, e.g. STELIB.
      fwhm: total FWHM to reach, Angstrom.
      snr: signal to noise of a pixel.
      seed: of the noise.
      fwhm_from: FWHM that the spectra have, Angstrom.

    Returns:
      (n, 1885) Spectra in vacuum, before continuum normalisation, with the ivar that matches the noise;
      pixels with less than half of their kernel on valid ones are masked.

    Raises:
      ConfigError: `snr` is not positive.
      DataError: `fwhm` is below `fwhm_from`, or nothing lies in the range.
    """
    if not snr > 0:
        raise ConfigError(f"the signal to noise must be positive, not {snr}")
    source = crop(spectra.to_vacuum(), WAVELENGTH[0] - 3 * fwhm, WAVELENGTH[-1] + 3 * fwhm)
    blurred = smooth(source, fwhm_from, fwhm, WAVELENGTH)
    sigma = np.abs(blurred.flux) / snr
    usable = ~blurred.mask & (sigma > 0)
    noise = np.stack([_noise(seed, name) for name in spectra.id.tolist()])
    return replace(
        blurred,
        flux=np.where(usable, blurred.flux + sigma * noise, 0.0),
        ivar=np.divide(1.0, sigma**2, out=np.zeros_like(sigma), where=usable),
        mask=~usable,
        survey=f"{spectra.survey}-grism",
        has_ivar=True,
    )


def _noise(seed: int, name: str) -> FloatArray:
    """(1885,) standard normal numbers that belong to one star."""
    digest = hashlib.sha256(name.encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u4").tolist()
    return np.random.default_rng([seed, *words]).standard_normal(WAVELENGTH.size)
