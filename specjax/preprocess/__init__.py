"""From `Spectra` as observed to flux on a model's wavelength grid; masks and ivar are honoured throughout."""

from specjax.preprocess.continuum import normalise
from specjax.preprocess.fill import PrincipalFill
from specjax.preprocess.resample import interpolate, rebin, shift_velocity, smooth
from specjax.preprocess.to_grid import gaia_xp_fwhm, to_gaia_xp, to_lamost

__all__ = [
    "PrincipalFill",
    "gaia_xp_fwhm",
    "interpolate",
    "normalise",
    "rebin",
    "shift_velocity",
    "smooth",
    "to_gaia_xp",
    "to_lamost",
]
