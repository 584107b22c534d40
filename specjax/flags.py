"""Quality flags of spectra, one per spectrum, in the column `flag` of tables and of `Spectra.meta`."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

import numpy as np

from specjax.typing import AnyArray, BoolArray


class Flag(StrEnum):
    """Why a spectrum, or the label predicted from it, should not be trusted."""

    GOOD = "good"
    """No problem was found."""
    NO_COVERAGE = "no_coverage"
    """No valid pixel lies on the model grid."""
    MASKED_FRACTION = "masked_fraction"
    """More pixels are masked than allowed; a label is predicted nevertheless."""
    CONTINUUM_FAILED = "continuum_failed"
    """The continuum could not be fitted, or does not follow the flux."""
    FEATURELESS = "featureless"
    """The normalised flux shows neither lines nor noise."""
    TOO_FAST = "too_fast"
    """The radial velocity exceeds 250 km/s and was not removed."""
    NO_VELOCITY = "no_velocity"
    """The radial velocity, which was to be removed, is unknown."""
    NO_REFERENCE = "no_reference"
    """A Gaia XP spectrum without positive flux at 550 nm."""
    NO_PARTNER = "no_partner"
    """A star without a Gaia XP spectrum."""
    UNLIKE_TRAINING = "unlike_training"
    """Out of domain: unlike every spectrum that the model was trained on."""
    HOTTER_THAN_TRAINING = "hotter_than_training"
    """Out of domain, on the side of hotter stars."""
    COOLER_THAN_TRAINING = "cooler_than_training"
    """Out of domain, on the side of cooler stars."""


USABLE = (Flag.GOOD, Flag.MASKED_FRACTION)
"""Flags of spectra for which a model predicts labels; with any other flag the prediction is NaN."""

FLAG_DTYPE = "<U32"
"""The NumPy type of a column of flags."""

MAX_MASKED = 0.2
"""Fraction of masked pixels above which a spectrum is flagged."""


def count_flags(flags: Iterable[str]) -> str:
    """State how often each flag occurs.

    >>> count_flags([Flag.TOO_FAST, Flag.FEATURELESS, Flag.TOO_FAST])
    '2 too_fast, 1 featureless'
    """
    return ", ".join(f"{count} {flag}" for flag, count in Counter(flags).items())


def mask_columns(
    mask: BoolArray, flag: AnyArray | None = None, max_masked: float = MAX_MASKED
) -> dict[str, AnyArray]:
    """Return the columns `masked_fraction` and `flag` of n spectra on a model grid.

    Args:
        mask: (n, p), True for pixels that are not used.
        flag: (n,) flags so far, of which only GOOD is replaced; by default, NO_COVERAGE where every pixel is
            masked and GOOD elsewhere.
        max_masked: fraction of masked pixels above which the flag becomes MASKED_FRACTION.
    """
    fraction = mask.mean(axis=1)
    if flag is None:
        flag = np.where(fraction == 1, Flag.NO_COVERAGE, Flag.GOOD)
    flag = np.where((flag == Flag.GOOD) & (fraction > max_masked), Flag.MASKED_FRACTION, flag)
    return {"masked_fraction": fraction, "flag": flag.astype(FLAG_DTYPE)}
