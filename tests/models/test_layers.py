import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import LoRAConfig
from specjax.models.layers import LoRADense, gelu, layer_norm, low_rank


def test_gelu_is_exact():
    x = np.array([-3.0, -1.0, -0.5, 0.0, 0.7, 1.0, 2.5])
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    # float32 erf; the tanh form is off by 1e-4 to 5e-4 at these points
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, atol=5e-7)


def test_the_derivative_of_gelu_agrees_with_automatic_differentiation():
    x, gradient = jnp.linspace(-6, 6, 41), jnp.linspace(0.5, 2, 41)
    plain = jax.vjp(lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)), x)[1](gradient)[0]
    np.testing.assert_allclose(jax.vjp(gelu, x)[1](gradient)[0], plain, atol=1e-6)  # float32, order 1


def test_layer_norm_has_the_epsilon_of_torch():
    """At a variance of 4e-6 the factor is 0.53 with epsilon 1e-5, and 0.89 with flax's default of 1e-6."""
    x = jnp.array([[0.002, -0.002]])
    norm = layer_norm()
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(y, np.array([[0.002, -0.002]]) / math.sqrt(4e-6 + 1e-5), rtol=1e-5)


def equations(jaxpr):
    """All equations, including those of inner programs."""
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
        assert np.abs(adapted["lora_a"]).max() < 7**-0.5
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
        """Also under a vmap over factors that does not batch x, as in the first adapted layer."""
        rng = np.random.default_rng(3)
        x, gradient = (jnp.asarray(rng.normal(size=(2, 5, d)), jnp.float32) for d in (7, 4))
        down, up = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 7, 3), (2, 3, 4)))

        def derivatives(function):
            one = lambda *factors: jax.vjp(lambda *given: function(*given, 1.5), x, *factors)[1](gradient)  # noqa: E731
            return jax.vmap(one)(down, up)

        plain = derivatives(lambda x, down, up, scale: scale * (x @ down @ up))
        chex.assert_trees_all_close(derivatives(low_rank), plain, rtol=1e-5, atol=1e-5)  # sums of 10 products

    def test_the_base_product_is_not_batched_over_seeds(self):
        """Under a vmap over factors x W stays one matrix product with seeds and rows as free axes."""
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
