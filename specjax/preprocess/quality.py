"""What no star's spectrum looks like: spikes, no lines and no noise, a continuum that missed the flux."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from specjax.preprocess.continuum import BLUE, RED
from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.preprocess.velocity import measure_velocity
from specjax.spectra import Spectra
from specjax.typing import BoolArray, FloatArray

LOWEST, HIGHEST = -1.0, 5.0
"""Flux over the level around it between which a pixel is believed, not a cosmic ray or bad subtraction."""

SIGMAS = 10.0
"""Standard deviations that it must be away from that level too, so that noise is not taken for spikes."""

LEVEL = (0.3, 1.2)
"""Mean flux over continuum where the continuum was found; that of stars is 0.6 to 1.05."""

FLAT = 1e-4
"""Standard deviation of flux over continuum of a spectrum that holds nothing: S/N of 10,000 and no lines."""

FAST = 250.0
"""Radial velocity in km/s beyond which a spectrum must be brought to rest first: 4 pixels of the grid."""

CLEAR = 0.3
"""Correlation with the strongest lines of stars above which a velocity is believed."""

_BLOCK = 64  # pixels over which the level is taken
_ROWS_AT_ONCE = 256


def without_spikes(spectra: Spectra) -> Spectra:
    """The spectra with pixels from 3700 to 5700 A masked that stand out from the level around them.

    The level and the spread (1.48 times the median absolute deviation) of a block of 64 pixels are the
    median of its own and its two neighbours', so that a blob of light of the length of a block does not count
    as its level. A pixel is masked where it is below LOWEST or above HIGHEST times the level and more than
    SIGMAS away from it. The strongest lines of stars are far from either.
    """
    inside = (spectra.wavelength >= BLUE) & (spectra.wavelength <= RED)
    columns = np.flatnonzero(np.atleast_2d(inside).any(axis=0))
    if not columns.size:
        return spectra
    part = slice(columns[0], columns[-1] + 1)
    mask = spectra.mask.copy()
    for start in range(0, len(spectra), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        valid = ~spectra.mask[rows, part] & (spectra.ivar[rows, part] > 0)
        mask[rows, part] |= _spikes(np.asarray(spectra.flux[rows, part], dtype=np.float64), valid)
    return replace(spectra, mask=mask)


def doubts(normalised: Spectra) -> np.ndarray:
    """(n,) why normalised spectra are no star's, or "".

    "continuum_failed" where the mean is beyond `LEVEL`, "featureless" where nothing varies by more than
    `FLAT`.
    """
    use = ~normalised.mask
    count = np.maximum(use.sum(axis=1), 1)
    mean = (normalised.flux * use).sum(axis=1) / count
    spread = np.sqrt((((normalised.flux - mean[:, None]) * use) ** 2).sum(axis=1) / count)
    flag = np.where(spread < FLAT, "featureless", "")
    flag = np.where((mean < LEVEL[0]) | (mean > LEVEL[1]), "continuum_failed", flag)
    return np.where(use.any(axis=1), flag, "")


def too_fast(spectra: Spectra, normalised: Spectra) -> BoolArray:
    """(n,) whether a velocity beyond `FAST` was left in: of a fast star, a galaxy, a quasar.

    It is meta["redshift"], v/c, of `spectra`; where that is not known, what the lines of `normalised` on the
    LAMOST grid say, if they say it clearly (see `velocity.measure_velocity`). Of 1303
    library stars at rest none is taken for a fast one; of those moved by 300 km/s nine in ten are.
    """
    redshift = spectra.meta.get("redshift")
    known = np.full(len(spectra), np.nan)
    if redshift is not None and redshift.dtype.kind in "fiu":
        known = redshift.astype(np.float64)
    fast = np.abs(np.nan_to_num(known)) * SPEED_OF_LIGHT > FAST
    rows = np.flatnonzero(np.isnan(known))
    if rows.size:
        velocity, sure = measure_velocity(normalised.flux[rows], normalised.mask[rows])
        fast[rows] = (np.abs(velocity) > FAST) & (sure > CLEAR)
    return fast


def _spikes(flux: FloatArray, valid: BoolArray) -> BoolArray:
    """(n, p) pixels that stand out, see `without_spikes`."""
    count, pixels = flux.shape
    padded = np.full((count, -(-pixels // _BLOCK) * _BLOCK), np.nan)
    np.copyto(padded[:, :pixels], flux, where=valid)
    blocks = padded.reshape(count, -1, _BLOCK)
    own = _median(blocks)
    level = _of_three(own)[..., None]
    with np.errstate(invalid="ignore"):  # NaN, where nothing is valid, stands out from nothing
        out = (blocks > HIGHEST * level) | (blocks < LOWEST * level)
        rows = out.any(axis=(1, 2))  # few
        spread = 1.48 * _of_three(_median(np.abs(blocks[rows] - own[rows][..., None])))[..., None]
        out[rows] &= np.abs(blocks[rows] - level[rows]) > SIGMAS * spread
    return np.asarray(out.reshape(count, -1)[:, :pixels])


def _median(blocks: FloatArray) -> FloatArray:
    """(n, b) lower medians of (n, b, k) values that are not NaN; NaN without any."""
    ordered = np.sort(blocks, axis=-1)  # NaN go last
    middle = np.maximum(np.isfinite(blocks).sum(axis=-1) - 1, 0) // 2
    return np.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0]


def _of_three(values: FloatArray) -> FloatArray:
    """(n, b) medians of each block's value and its two neighbours'; at the ends, of three at that end."""
    if values.shape[1] < 3:
        return values
    three = np.stack([values[:, :-2], values[:, 1:-1], values[:, 2:]], axis=-1)
    middle = _median(three)
    return np.concatenate([middle[:, :1], middle, middle[:, -1:]], axis=1)
