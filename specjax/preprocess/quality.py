"""Quality checks on spectra: spikes, featureless spectra, failed continua and high velocities."""

import numpy as np

from specjax.flags import Flag
from specjax.preprocess.continuum import BLUE, RED, lower_median
from specjax.preprocess.resample import SPEED_OF_LIGHT
from specjax.preprocess.velocity import measure_velocity
from specjax.spectra import Spectra
from specjax.typing import BoolArray, FloatArray, IntArray, StrArray
from specjax.wavelength import columns_between

SPIKE_RANGE = (-1.0, 5.0)
"""Flux relative to the local level, outside which a pixel may be a spike (cosmic ray, bad subtraction)."""

SPIKE_SIGMAS = 10.0
"""Minimum deviation of a spike from the local level in standard deviations, so that noise is not masked."""

MEAN_RANGE = (0.3, 1.2)
"""Mean normalised flux outside which the continuum has failed; stars have 0.6 to 1.05."""

MIN_SCATTER = 1e-4
"""Standard deviation of normalised flux below which a spectrum is featureless (S/N 10,000 and no lines)."""

MAX_VELOCITY = 250.0
"""Radial velocity in km/s, 4 pixels of the grid, above which a spectrum must be shifted to rest first."""

MIN_CORRELATION = 0.3
"""Correlation with the strongest stellar lines above which a measured velocity is reliable."""

_BLOCK = 64  # pixels over which the local level is measured
_ROWS_AT_ONCE = 32


def mask_spikes(spectra: Spectra) -> Spectra:
    """Mask pixels from 3700 to 5700 A that deviate strongly from the local level.

    The level and the scatter (1.48 times the median absolute deviation) of a block of 64 pixels are the
    medians over the block and its two neighbours, so that an artefact as long as a block does not set the
    level. A pixel is masked if it lies outside SPIKE_RANGE times the level and more than SPIKE_SIGMAS times
    the scatter away from it. The strongest stellar lines are far from either limit.
    """
    part = columns_between(spectra.wavelength, BLUE, RED)
    if not part.stop:
        return spectra
    mask = spectra.mask.copy()
    for start in range(0, len(spectra), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        flux = np.asarray(spectra.flux[rows, part], dtype=np.float64)
        valid = ~spectra.mask[rows, part] & (spectra.ivar[rows, part] > 0)
        pixels = np.full(len(flux), flux.shape[1])
        if spectra.wavelength.ndim == 1:
            mask[rows, part] |= _spikes(flux, valid, pixels)
            continue
        # The blocks of each spectrum begin at its own first pixel.
        grid = spectra.wavelength[rows, part]
        inside = (grid >= BLUE) & (grid <= RED)
        first = inside.argmax(axis=1)[:, None]
        column = first + np.arange(part.stop - part.start)
        kept = np.minimum(column, column.shape[1] - 1)
        valid = np.take_along_axis(valid & inside, kept, axis=1) & (column == kept)
        pixels = np.maximum(inside.sum(axis=1), 1)
        row, spike = np.nonzero(_spikes(np.take_along_axis(flux, kept, axis=1), valid, pixels))
        mask[start + row, part.start + kept[row, spike]] = True
    return spectra.derive(mask=mask)


def quality_flags(normalised: Spectra) -> StrArray:
    """Return (n,) flags of normalised spectra: CONTINUUM_FAILED, FEATURELESS or GOOD.

    The continuum has failed where the mean flux is outside MEAN_RANGE; a spectrum is featureless where the
    standard deviation is below MIN_SCATTER. Wholly masked spectra are GOOD here.
    """
    use = ~normalised.mask
    count = np.maximum(use.sum(axis=1), 1)
    mean = (normalised.flux * use).sum(axis=1) / count
    scatter = np.sqrt((((normalised.flux - mean[:, None]) * use) ** 2).sum(axis=1) / count)
    flag = np.where(scatter < MIN_SCATTER, Flag.FEATURELESS, Flag.GOOD)
    flag = np.where((mean < MEAN_RANGE[0]) | (mean > MEAN_RANGE[1]), Flag.CONTINUUM_FAILED, flag)
    return np.where(use.any(axis=1), flag, Flag.GOOD)


def too_fast(spectra: Spectra, normalised: Spectra) -> BoolArray:
    """Return (n,) whether a radial velocity above MAX_VELOCITY remains (halo stars, galaxies, quasars).

    The velocity is meta["redshift"], v/c, of `spectra`; where that is unknown, it is measured from the lines
    of `normalised` on the LAMOST grid and used if it is reliable (see `velocity.measure_velocity`). Of 1303
    library stars at rest none is found too fast; of the same stars shifted by 300 km/s, nine in ten are.
    """
    redshift = spectra.meta.get("redshift")
    known = np.full(len(spectra), np.nan)
    if redshift is not None and redshift.dtype.kind in "fiu":
        known = redshift.astype(np.float64)
    fast: BoolArray = np.abs(np.nan_to_num(known)) * SPEED_OF_LIGHT > MAX_VELOCITY
    rows = np.flatnonzero(np.isnan(known))
    if rows.size:
        velocity, correlation = measure_velocity(normalised.flux[rows], normalised.mask[rows])
        fast[rows] = (np.abs(velocity) > MAX_VELOCITY) & (correlation > MIN_CORRELATION)
    return fast


def _spikes(flux: FloatArray, valid: BoolArray, pixels: IntArray) -> BoolArray:
    """Return (n, p) True for spikes, see `mask_spikes`, in spectra of (n,) pixels each."""
    count, width = flux.shape
    padded = np.full((count, -(-width // _BLOCK) * _BLOCK), np.nan)
    np.copyto(padded[:, :width], flux, where=valid)
    blocks, last = padded.reshape(count, -1, _BLOCK), (pixels - 1) // _BLOCK
    own = lower_median(blocks)
    level = _median_of_three(own, last)[..., None]
    with np.errstate(invalid="ignore"):  # comparisons with NaN, where no pixel is valid, are False
        spike = (blocks < SPIKE_RANGE[0] * level) | (blocks > SPIKE_RANGE[1] * level)
        rows = spike.any(axis=(1, 2))  # few
        deviation = np.abs(blocks[rows] - own[rows][..., None])
        scatter = 1.48 * _median_of_three(lower_median(deviation), last[rows])[..., None]
        spike[rows] &= np.abs(blocks[rows] - level[rows]) > SPIKE_SIGMAS * scatter
    return np.asarray(spike.reshape(count, -1)[:, :width])


def _median_of_three(values: FloatArray, last: IntArray) -> FloatArray:
    """Return (n, b) medians over each block and its two neighbours; end blocks repeat their neighbour's.

    The last blocks of the spectra are `last` (n,). Spectra of fewer than three blocks keep their own values.
    """
    if values.shape[1] < 3:
        return values
    before, own, after = values[:, :-2], values[:, 1:-1], values[:, 2:]
    middle = lower_median(np.stack([before, own, after], axis=-1))
    level = np.concatenate([middle[:, :1], middle, middle[:, -1:]], axis=1)
    row = np.arange(len(values))
    level[row, last] = level[row, last - 1]
    return np.where(last[:, None] < 2, values, level)
