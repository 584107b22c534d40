"""Masked stretches of a spectrum become zero tokens, as masked tokens were in pre-training."""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax.config import get_preset
from specjax.models.tokens import tokenise
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.wavelength import LAMOST_WAVELENGTH

CONFIG = get_preset("paper").specformer
GRID = np.arange(3650.0, 5750.0, 0.8)
LOW, HIGH = 4400.0, 4700.0


@pytest.fixture(scope="module")
def lamost():
    """Return a star on the LAMOST grid, complete and with a masked stretch of flux 1e4."""
    rng = np.random.default_rng(0)
    centre = rng.uniform(3700, 5700, 50)
    flux = np.exp(-0.4 * np.exp(-0.5 * ((GRID[:, None] - centre) / 3) ** 2).sum(axis=1)) * (GRID / 5000) ** -1
    mask = np.zeros((2, GRID.size), bool)
    mask[1] = (GRID > LOW) & (GRID < HIGH)
    return to_lamost(Spectra.build(GRID, np.where(mask, 1e4, flux), mask=mask))


def test_masked_windows_become_zero_tokens_as_in_masked_modelling(lamost):
    tokens = np.asarray(tokenise(jnp.asarray(lamost.flux), CONFIG, jnp.asarray(~lamost.mask)))
    starts = CONFIG.stride * np.arange(CONFIG.num_windows)
    gone = np.array([lamost.mask[1, start : start + CONFIG.window].all() for start in starts])
    assert gone.sum() > 20
    hidden = np.concatenate([[False], gone])  # the first token holds the statistics
    as_pretrained = np.where(hidden[:, None], 0.0, tokens[1])  # as masked modelling hides tokens
    np.testing.assert_array_equal(tokens[1], as_pretrained)
    assert (tokens[1, ~hidden] != 0).any(axis=1).all()


def test_other_tokens_do_not_depend_on_the_masked_stretch(lamost):
    """Mean and standard deviation are those of the valid pixels, without the 1e4."""
    valid = ~lamost.mask[1]
    tokens = np.asarray(tokenise(jnp.asarray(lamost.flux), CONFIG, jnp.asarray(~lamost.mask)))
    left = lamost.flux[1, valid]
    first = (lamost.flux[1, : CONFIG.window] - left.mean()) / left.std(ddof=1)
    np.testing.assert_allclose(tokens[1, 1, 1:], first, atol=1e-5)  # float32
    np.testing.assert_allclose(tokens[1, 0, 0], np.log10(left.std(ddof=1)), atol=1e-5)
    away = (LAMOST_WAVELENGTH < LOW - 5) | (LAMOST_WAVELENGTH > HIGH + 5)
    # The continuum is fitted to 300 A less.
    np.testing.assert_allclose(lamost.flux[1, away], lamost.flux[0, away], atol=0.03)
