"""Preprocessing of observed `Spectra` to flux on the models' wavelength grids."""

from specjax.preprocess.continuum import normalise
from specjax.preprocess.fill import PrincipalFill
from specjax.preprocess.resample import interpolate, rebin, smooth
from specjax.preprocess.to_grid import gaia_xp_fwhm, to_gaia_xp, to_lamost

__all__ = [
    "PrincipalFill",
    "gaia_xp_fwhm",
    "interpolate",
    "normalise",
    "rebin",
    "smooth",
    "to_gaia_xp",
    "to_lamost",
]
