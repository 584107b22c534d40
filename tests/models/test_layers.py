import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.config import LoRAConfig, SpecFormerConfig
from specjax.models.layers import LoRADense, detokenise, gelu, layer_norm, low_rank, standardise, tokenise
from tests.models.tiny import TINY

CONFIG = TINY.specformer
tokenise_jit = jax.jit(tokenise, static_argnums=1)
standardise_jit = jax.jit(standardise)


def spectra(n=4, pixels=CONFIG.num_pixels, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.1, (n, pixels)).astype(np.float32)


def test_standard_deviation_is_the_unbiased_one():
    x, mean, std = standardise_jit(np.array([[1.0, 2.0, 4.0]], np.float32))
    # Mean 7/3 and squared deviations 16/9 + 1/9 + 25/9 = 42/9, over n - 1 = 2.
    np.testing.assert_allclose(mean, [[7 / 3]], rtol=1e-6)  # float32 holds 7 digits
    np.testing.assert_allclose(std, [[math.sqrt(21 / 9)]], rtol=1e-6)
    np.testing.assert_allclose(x[0], (np.array([1, 2, 4]) - 7 / 3) / math.sqrt(21 / 9), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.05, 20), shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_a_linear_change_of_flux_moves_only_the_statistics(scale, shift, seed):
    flux = spectra(2, seed=seed)
    before = np.array(tokenise_jit(flux, CONFIG))
    after = np.array(tokenise_jit((scale * flux + shift).astype(np.float32), CONFIG))
    np.testing.assert_allclose(
        after[:, 0, 0] - before[:, 0, 0],
        np.log10(scale),
        atol=1e-4,  # rounding: shift/(scale std) up to 1e3 of float32's 6e-8
    )
    before[:, 0, 0] = after[:, 0, 0] = 0
    # The rounding of flux + shift is up to 5 x 6e-8, which the division by scale x 0.1 >= 0.005 magnifies.
    np.testing.assert_allclose(after, before, atol=5e-4)


def test_tokens_are_the_published_windows():
    """145 windows of 20 every 10 pixels; the last two pixels enter through mean and std only."""
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
        # The same numbers, but of two programs, whose means XLA may round apart by 1e-7 of a flux of 0.1 std.
        np.testing.assert_allclose(tokens[0, 1 + window, 1:], expected, atol=3e-6)


def test_on_a_scale_of_their_own_windows_keep_how_deep_lines_are():
    """Twice the depth is twice the tokens; with the published form only the statistics tell."""
    config, flux = dataclasses.replace(CONFIG, flux_scale=0.2), spectra()
    once, twice = (np.asarray(tokenise_jit(f, config)) for f in (flux, 1 + 2 * (flux - 1)))
    # float32 of flux - 1, on a scale of 0.2
    np.testing.assert_allclose(twice[:, 1:], 2 * once[:, 1:], atol=1e-5)
    np.testing.assert_allclose(once[:, 1, 1:], (flux[:, : CONFIG.window] - 1) / 0.2, atol=1e-6)
    np.testing.assert_array_equal(once[:, 0], tokenise_jit(flux, CONFIG)[:, 0])


def test_masked_pixels_are_continuum_on_a_scale_of_their_own():
    config, flux = dataclasses.replace(CONFIG, flux_scale=0.2), spectra()
    valid = np.random.default_rng(1).random(flux.shape) > 0.3
    spoilt = np.asarray(tokenise_jit(np.where(valid, flux, np.nan), config, valid))
    whole = np.asarray(tokenise_jit(np.where(valid, flux, 1.0), config))
    np.testing.assert_array_equal(spoilt[:, 1:], whole[:, 1:])


def test_masked_pixels_count_for_nothing():
    flux = spectra()
    valid = np.random.default_rng(1).random(flux.shape) > 0.3
    spoilt = np.where(valid, flux, np.nan)
    x, mean, std = (np.asarray(a) for a in standardise_jit(spoilt, valid))
    for row in range(len(flux)):
        good = flux[row, valid[row]].astype(np.float64)
        # float32 sums of 41 numbers of order 1
        np.testing.assert_allclose(mean[row], good.mean(), rtol=1e-6)
        np.testing.assert_allclose(std[row], good.std(ddof=1), rtol=1e-5)
    assert not x[~valid].any()
    assert np.isfinite(np.asarray(tokenise_jit(spoilt, CONFIG, valid))).all()


def test_a_mask_without_masked_pixels_changes_nothing():
    flux = spectra()
    everywhere = np.ones(flux.shape, bool)
    # Two programs, whose means XLA may round apart by 1e-7 of a flux of 0.1 std.
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
    assert np.isfinite(gradient).all()


def test_detokenise_undoes_tokenise_where_windows_reach():
    flux = spectra()
    x, _, _ = standardise_jit(flux)
    back = np.asarray(jax.jit(detokenise, static_argnums=1)(tokenise_jit(flux, CONFIG), CONFIG))
    used = CONFIG.stride * (CONFIG.num_windows - 1) + CONFIG.window
    assert used < CONFIG.num_pixels
    np.testing.assert_allclose(back[:, :used], x[:, :used], atol=1e-6)  # (a + a)/2 and one more rounding
    np.testing.assert_array_equal(back[:, used:], np.repeat(back[:, used - 1 : used], 2, axis=1))


def test_gelu_is_the_exact_one():
    x = np.array([-3.0, -1.0, -0.5, 0.0, 0.7, 1.0, 2.5])
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    # float32 erf; the tanh form is off by 1e-4 to 5e-4 at these points
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, atol=5e-7)


def test_the_derivative_of_gelu_is_the_one_that_jax_finds():
    x, gradient = jnp.linspace(-6, 6, 41), jnp.linspace(0.5, 2, 41)
    plain = jax.vjp(lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)), x)[1](gradient)[0]
    np.testing.assert_allclose(jax.vjp(gelu, x)[1](gradient)[0], plain, atol=1e-6)  # float32, order 1


def test_layer_norm_has_the_epsilon_of_torch():
    """At a variance of 4e-6 the output tells 1e-5 from flax's default 1e-6: factors 0.53 and 0.89."""
    x = jnp.array([[0.002, -0.002]])
    norm = layer_norm()
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(y, np.array([[0.002, -0.002]]) / math.sqrt(4e-6 + 1e-5), rtol=1e-5)


def equations(jaxpr):
    """All equations, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)


class TestLoRADense:
    lora = LoRAConfig(rank=3, alpha=6.0)
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)

    def test_leaf_names_and_shapes(self):
        adapted = LoRADense(4, lora=self.lora).init(jax.random.key(0), self.x)["params"]
        shapes = {"kernel": (7, 4), "bias": (4,), "lora_a": (7, 3), "lora_b": (3, 4)}
        assert jax.tree.map(np.shape, adapted) == shapes
        plain = LoRADense(4).init(jax.random.key(0), self.x)["params"]
        assert plain.keys() == {"kernel", "bias"}

    def test_zero_b_gives_the_base_output_exactly(self):
        params = LoRADense(4, lora=self.lora).init(jax.random.key(0), self.x)["params"]
        base = {name: params[name] for name in ("kernel", "bias")}
        np.testing.assert_array_equal(
            LoRADense(4, lora=self.lora).apply({"params": params}, self.x),
            LoRADense(4).apply({"params": base}, self.x),
        )

    def test_formula(self):
        params = LoRADense(4, lora=self.lora).init(jax.random.key(0), self.x)["params"]
        params["lora_b"] = jax.random.normal(jax.random.key(1), (3, 4))
        w, b, down, up = (np.float64(params[n]) for n in ("kernel", "bias", "lora_a", "lora_b"))
        np.testing.assert_allclose(
            LoRADense(4, lora=self.lora).apply({"params": params}, self.x),
            self.x @ w + b + 6.0 / 3 * (self.x @ down @ up),
            rtol=1e-5,  # float32 sums of seven products
            atol=1e-6,
        )

    def test_derivatives_are_those_of_the_formula(self):
        """Also under a vmap over factors that leaves x alone, as it is in the first adapted layer."""
        rng = np.random.default_rng(3)
        x, gradient = (jnp.asarray(rng.normal(size=(2, 5, d)), jnp.float32) for d in (7, 4))
        down, up = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 7, 3), (2, 3, 4)))

        def derivatives(function):
            one = lambda *factors: jax.vjp(lambda *given: function(*given, 1.5), x, *factors)[1](gradient)  # noqa: E731
            return jax.vmap(one)(down, up)

        plain = derivatives(lambda x, down, up, scale: scale * (x @ down @ up))
        chex.assert_trees_all_close(derivatives(low_rank), plain, rtol=1e-5, atol=1e-5)  # sums of 10 products

    def test_the_base_product_is_not_batched_over_seeds(self):
        """Under a vmap over factors x W stays one matrix product, with seeds and rows as free axes."""
        layer = LoRADense(4, lora=self.lora)
        params = layer.init(jax.random.key(0), self.x)["params"]
        base = {name: params[name] for name in ("kernel", "bias")}
        factors = {name: jnp.stack([params[name]] * 2) for name in ("lora_a", "lora_b")}

        def apply(factors, x):
            return layer.apply({"params": base | factors}, x)

        jaxpr = jax.make_jaxpr(jax.vmap(apply))(factors, jnp.stack([self.x] * 2))
        products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
        batch_axes = [len(e.params["dimension_numbers"][1][0]) for e in products]
        assert sorted(batch_axes) == [0, 1, 1]
