import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.config import SpecFormerConfig
from specjax.models.tokens import detokenise, standardise, tokenise
from tests.models.tiny import TINY

CONFIG = TINY.specformer
tokenise_jit = jax.jit(tokenise, static_argnums=1)
standardise_jit = jax.jit(standardise)


def spectra(n=4, pixels=CONFIG.num_pixels, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.1, (n, pixels)).astype(np.float32)


def test_the_standard_deviation_is_unbiased():
    x, mean, std = standardise_jit(np.array([[1.0, 2.0, 4.0]], np.float32))
    # Mean 7/3 and squared deviations 16/9 + 1/9 + 25/9 = 42/9, over n - 1 = 2.
    np.testing.assert_allclose(mean, [[7 / 3]], rtol=1e-6)  # float32 holds 7 digits
    np.testing.assert_allclose(std, [[math.sqrt(21 / 9)]], rtol=1e-6)
    np.testing.assert_allclose(x[0], (np.array([1, 2, 4]) - 7 / 3) / math.sqrt(21 / 9), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.05, 20), shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_a_linear_change_of_flux_changes_only_the_statistics(scale, shift, seed):
    flux = spectra(2, seed=seed)
    before = np.array(tokenise_jit(flux, CONFIG))
    after = np.array(tokenise_jit((scale * flux + shift).astype(np.float32), CONFIG))
    np.testing.assert_allclose(
        after[:, 0, 0] - before[:, 0, 0],
        np.log10(scale),
        atol=1e-4,  # rounding: shift/(scale std) up to 1e3 of float32's 6e-8
    )
    before[:, 0, 0] = after[:, 0, 0] = 0
    # The rounding of flux + shift is up to 5 x 6e-8, amplified by the division by scale x 0.1 >= 0.005.
    np.testing.assert_allclose(after, before, atol=5e-4)


def test_tokens_are_the_published_windows():
    """145 windows of 20 pixels, one every 10; the last two pixels enter only through mean and std."""
    config = SpecFormerConfig()
    flux = spectra(1, 1462)
    tokens = np.asarray(tokenise_jit(flux, config))
    assert tokens.shape == (1, 146, 21)
    x, _, std = (np.asarray(a) for a in standardise_jit(flux))
    assert tokens[0, 0, 0] == pytest.approx(np.log10(std[0, 0]), rel=1e-6)
    assert not tokens[0, 0, 1:].any()
    assert not tokens[0, 1:, 0].any()
    for window in (0, 1, 77, 144):
        expected = x[0, 10 * window : 10 * window + 20]
        # The same numbers from two programs: XLA may round their means differently, by 1e-7 at a std of 0.1.
        np.testing.assert_allclose(tokens[0, 1 + window, 1:], expected, atol=3e-6)


def test_windows_with_a_flux_scale_keep_the_depth_of_lines():
    """Doubling the depth doubles the tokens; in the published form it changes only the statistics."""
    config, flux = dataclasses.replace(CONFIG, flux_scale=0.2), spectra()
    once, twice = (np.asarray(tokenise_jit(f, config)) for f in (flux, 1 + 2 * (flux - 1)))
    # float32 of flux - 1, on a scale of 0.2
    np.testing.assert_allclose(twice[:, 1:], 2 * once[:, 1:], atol=1e-5)
    np.testing.assert_allclose(once[:, 1, 1:], (flux[:, : CONFIG.window] - 1) / 0.2, atol=1e-6)
    np.testing.assert_array_equal(once[:, 0], tokenise_jit(flux, CONFIG)[:, 0])


def test_masked_pixels_are_continuum_with_a_flux_scale():
    config, flux = dataclasses.replace(CONFIG, flux_scale=0.2), spectra()
    valid = np.random.default_rng(1).random(flux.shape) > 0.3
    corrupted = np.asarray(tokenise_jit(np.where(valid, flux, np.nan), config, valid))
    whole = np.asarray(tokenise_jit(np.where(valid, flux, 1.0), config))
    np.testing.assert_array_equal(corrupted[:, 1:], whole[:, 1:])


def test_masked_pixels_do_not_enter_the_statistics():
    flux = spectra()
    valid = np.random.default_rng(1).random(flux.shape) > 0.3
    corrupted = np.where(valid, flux, np.nan)
    x, mean, std = (np.asarray(a) for a in standardise_jit(corrupted, valid))
    for row in range(len(flux)):
        good = flux[row, valid[row]].astype(np.float64)
        # float32 sums of 41 numbers of order 1
        np.testing.assert_allclose(mean[row], good.mean(), rtol=1e-6)
        np.testing.assert_allclose(std[row], good.std(ddof=1), rtol=1e-5)
    assert not x[~valid].any()
    assert np.isfinite(np.asarray(tokenise_jit(corrupted, CONFIG, valid))).all()


def test_a_mask_without_masked_pixels_changes_nothing():
    flux = spectra()
    everywhere = np.ones(flux.shape, bool)
    # Two programs: XLA may round their means differently, by 1e-7 at a std of 0.1.
    np.testing.assert_allclose(tokenise_jit(flux, CONFIG, everywhere), tokenise_jit(flux, CONFIG), atol=3e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, 1.0, -3.7, 1e4])
def test_a_constant_spectrum_gives_zeros(level):
    flux = np.full((1, CONFIG.num_pixels), level, np.float32)
    assert not np.asarray(tokenise_jit(flux, CONFIG)).any()


def test_fewer_than_two_valid_pixels_give_zeros():
    flux = spectra(2)
    valid = np.zeros(flux.shape, bool)
    valid[1, 3] = True
    assert not np.asarray(tokenise_jit(flux, CONFIG, valid)).any()


def test_gradients_stay_finite_where_the_spectrum_is_constant():
    flux = jnp.stack([jnp.ones(CONFIG.num_pixels), jnp.asarray(spectra(1)[0])])
    gradient = jax.grad(lambda f: (tokenise(f, CONFIG) ** 2).sum())(flux)
    chex.assert_tree_all_finite(gradient)


def test_detokenise_inverts_tokenise_inside_the_windows():
    flux = spectra()
    x, _, _ = standardise_jit(flux)
    back = np.asarray(jax.jit(detokenise, static_argnums=1)(tokenise_jit(flux, CONFIG), CONFIG))
    used = CONFIG.stride * (CONFIG.num_windows - 1) + CONFIG.window
    assert used < CONFIG.num_pixels
    np.testing.assert_allclose(back[:, :used], x[:, :used], atol=1e-6)  # (a + a)/2 and one more rounding
    np.testing.assert_array_equal(back[:, used:], np.repeat(back[:, used - 1 : used], 2, axis=1))
