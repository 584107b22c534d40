"""Quality flags of spectra, one per spectrum, in the column `flag` of tables and of `Spectra.meta`."""

from enum import StrEnum


class Flag(StrEnum):
    """Why a spectrum, or the label predicted from it, should not be trusted as it is."""

    GOOD = ""
    """Nothing is wrong."""
    NO_COVERAGE = "no_coverage"
    """No valid pixel lies on the model grid."""
    MASKED_FRACTION = "masked_fraction"
    """More pixels are masked than allowed; the label is predicted all the same."""
    CONTINUUM_FAILED = "continuum_failed"
    """The continuum could not be fitted, or does not follow the flux."""
    FEATURELESS = "featureless"
    """The normalised flux does not vary."""
    TOO_FAST = "too_fast"
    """The radial velocity exceeds 250 km/s and was not removed."""
    NO_VELOCITY = "no_velocity"
    """The radial velocity was to be removed and is not known."""
    NO_REFERENCE = "no_reference"
    """A Gaia XP spectrum without positive flux at 550 nm."""
    NO_PARTNER = "no_partner"
    """A star without a Gaia XP spectrum."""
    UNLIKE_TRAINING = "unlike_training"
    """Out of domain: unlike all spectra that the model was trained on."""
    HOTTER_THAN_TRAINING = "hotter_than_training"
    """Out of domain, on the side of the hotter stars."""
    COOLER_THAN_TRAINING = "cooler_than_training"
    """Out of domain, on the side of the cooler stars."""


USABLE = (Flag.GOOD, Flag.MASKED_FRACTION)
"""Flags of spectra that the networks can read; the others have no number to give."""

FLAG_DTYPE = "<U32"
"""The NumPy type of a column of flags."""
