"""Input of the networks from spectra on a model grid: checked, with masked pixels filled or marked."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from specjax.config import ModelConfig
from specjax.errors import DataError
from specjax.preprocess.fill import PrincipalFill
from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, Float32Array, FloatArray

SURVEYS = ("lamost", "gaia_xp")

SpectraLike = Spectra | ArrayLike
"""Spectra from `preprocess.to_lamost` or `to_gaia_xp`, or bare flux (n, pixels) without any masked pixel."""

# Beyond these the squares in the standardisation leave the range of float32.
_SMALLEST, _LARGEST = 1e-15, 1e15


class ModelInput(NamedTuple):
    """Input of the networks: flux (n, pixels) float32, and valid (n, pixels), True where it may be used."""

    flux: Float32Array
    valid: BoolArray


def survey_of(spectra: SpectraLike, survey: str | None) -> str:
    """Return the survey on whose model grid spectra are; by default arrays are LAMOST spectra.

    Raises:
        DataError: an unknown survey, or Spectra that are not on its grid or on any model grid.
    """
    if isinstance(spectra, Spectra):
        tower = (spectra.prepared or {}).get("tower")
        if tower is None:
            raise DataError(
                "spectra as observed must be put on the model grid first: preprocess.to_lamost(spectra)"
            )
        if survey not in (None, tower):
            raise DataError(f"the spectra are on the grid of {tower!r}, not of {survey!r}")
        return str(tower)
    survey = survey or "lamost"
    if survey not in SURVEYS:
        raise DataError(f"unknown survey {survey!r}; surveys are {' and '.join(SURVEYS)}")
    return survey


def model_input(
    spectra: SpectraLike, survey: str, config: ModelConfig, fill: PrincipalFill | None
) -> ModelInput:
    """Check spectra and convert them to input of the networks.

    A pixel counts as masked where the mask is set or the inverse variance is not positive. With `fill`,
    masked pixels are replaced by it and count as valid, except in spectra without any valid pixel.

    Raises:
        DataError: a shape that does not fit, NaN or infinity in an unmasked pixel, or flux that is not of
            order 1.
    """
    pixels = pixel_count(config, survey)
    ivar: FloatArray | None = None
    if isinstance(spectra, Spectra):
        flux = _as_array(spectra.flux, pixels)
        masked = spectra.mask.copy()
        if spectra.has_ivar:
            ivar = np.asarray(spectra.ivar, np.float64)
            masked |= ~(ivar > 0)
    else:
        flux = _as_array(spectra, pixels)
        masked = np.zeros(flux.shape, bool)
    _check_values(flux, masked)
    flux = np.where(masked, 1.0, flux)
    if fill is not None and masked.any():
        flux = fill.apply(flux, ivar, masked)
        masked = np.broadcast_to(masked.all(-1, keepdims=True), masked.shape)
    return ModelInput(np.asarray(flux, np.float32), ~masked)


def pixel_count(config: ModelConfig, survey: str) -> int:
    """Return the number of pixels of the model grid of "lamost" or "gaia_xp"."""
    if survey == "lamost":
        return config.specformer.num_pixels
    return (config.xp_transformer or config.xp_autoencoder).num_pixels


def _as_array(values: Any, pixels: int) -> FloatArray:
    """Return flux as float64 (n, pixels), n >= 1."""
    try:
        array: AnyArray = np.asarray(values)
        array = array.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError):
        raise DataError("flux must be a rectangular array of real numbers") from None
    if array.ndim != 2 or array.shape[1] != pixels or not array.size:
        raise DataError(f"flux must have the shape (n, {pixels}), not {array.shape}")
    return array


def _check_values(flux: FloatArray, masked: BoolArray) -> None:
    """Refuse flux (n, pixels) that is not finite, or far from order 1, in an unmasked pixel."""
    largest = np.where(masked, 0.0, np.abs(flux)).max(axis=-1)  # NaN, too, is the largest
    bad = ~np.isfinite(largest)
    if bad.any():
        raise DataError(
            f"flux has NaN or infinity in {bad.sum()} of {len(flux)} spectra, first in row {bad.argmax()};"
            " mask these pixels"
        )
    wild = (largest > _LARGEST) | ((largest < _SMALLEST) & (largest > 0))
    if wild.any():
        row = wild.argmax()
        raise DataError(f"flux of row {row} reaches {largest[row]:.1e}; it must be normalised, of order 1")
