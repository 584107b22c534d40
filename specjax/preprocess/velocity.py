"""Approximate radial velocity from the strongest lines, to detect spectra that are not at rest."""

from functools import lru_cache

import numpy as np
from scipy.ndimage import uniform_filter1d

from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.typing import BoolArray, FloatArray
from specjax.wavelength import LAMOST_WAVELENGTH

LINES = {
    **dict.fromkeys((4102.89, 4341.68, 4862.68), 1.0),  # Balmer
    **dict.fromkeys((5168.76, 5174.13, 5185.05), 0.7),  # Mg b
    **dict.fromkeys((4227.92, 4305.6, 5271.0), 0.6),  # Ca I, the G band, Fe I
    **dict.fromkeys((4384.78, 5329.5, 5372.9), 0.5),  # Fe I, as all below
    **dict.fromkeys((4046.96, 4064.7, 4072.9, 4272.9, 4405.99, 4921.9, 4958.7, 5228.6, 5407.3), 0.3),
}
"""Approximate strengths of the strongest features from 4000 to 5600 A, by vacuum wavelength in Angstrom."""

_SHIFTS = np.arange(-15, 16)  # pixels of 69 km/s
_ENDS = _SHIFTS.size - 1  # pixels at either end that the template does not cover at every shift
_WIDTH = 4.0  # Angstrom, Gaussian sigma of a line
_SMOOTH = 61  # pixels over which the local level is averaged
_CLIP = (-0.5, 0.2)  # limits of normalised flux minus the local level


def measure_velocity(flux: FloatArray, mask: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Measure radial velocities by cross-correlation with a template of `LINES`.

    Args:
        flux: (n, 1462) continuum-normalised flux on the LAMOST grid.
        mask: (n, 1462), True for pixels that are not used.

    Returns:
        (n,) velocities from -1000 to 1000 km/s, good to about 40 km/s, and (n,) peak correlations: 0.4 to 0.6
        for stars, below 0.3 for spectra with hardly any lines.
    """
    level = uniform_filter1d(np.where(mask, 1.0, flux), _SMOOTH, axis=1)
    lines = np.where(mask, 0.0, np.clip(flux - level, *_CLIP))
    templates, power = _templates()
    size = np.sqrt(_windows(lines**2) * power)
    correlation = np.divide(lines @ templates.T, size, out=np.zeros_like(size), where=size > 0)
    best = np.clip(correlation.argmax(axis=1), 1, _SHIFTS.size - 2)
    below, peak, above = (
        np.take_along_axis(correlation, best[:, None] + k, axis=1)[:, 0] for k in (-1, 0, 1)
    )
    bend = below - 2 * peak + above
    offset = np.divide(below - above, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
    pixels = _SHIFTS[best] + np.clip(offset, -0.5, 0.5)
    return pixels * 1e-4 * np.log(10.0) * SPEED_OF_LIGHT, np.asarray(correlation.max(axis=1))


def _windows(values: FloatArray) -> FloatArray:
    """Return (n, shifts) sums of (n, p) values over the pixels of the template at each shift."""
    common = values[:, _ENDS:-_ENDS].sum(axis=1, keepdims=True)
    none = np.zeros_like(common)
    left = np.cumsum(values[:, :_ENDS][:, ::-1], axis=1)[:, ::-1]  # of the smallest shift first
    right = np.cumsum(values[:, -_ENDS:], axis=1)
    return np.asarray(common + np.concatenate([left, none], axis=1) + np.concatenate([none, right], axis=1))


@lru_cache
def _templates() -> tuple[FloatArray, float]:
    """Return the lines minus the local level at each shift, (shifts, p), and the sum of their squares.

    The lines are cut by the largest shift at either end.
    """
    template = sum(
        -strength * np.exp(-0.5 * ((LAMOST_WAVELENGTH - line) / _WIDTH) ** 2)
        for line, strength in LINES.items()
    )
    template = np.asarray(template - uniform_filter1d(template, _SMOOTH))[_ENDS // 2 : -(_ENDS // 2)]
    shifted = np.zeros((_SHIFTS.size, LAMOST_WAVELENGTH.size))
    for first, row in enumerate(shifted):
        row[first : first + template.size] = template
    return shifted, float((template**2).sum())
