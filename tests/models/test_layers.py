import math

import jax
import jax.numpy as jnp
import numpy as np

from specjax.config import LoRAConfig
from specjax.models.layers import LoRADense, dense, gelu, layer_norm
from tests.models.tiny import equations


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

    def test_layers_of_one_input_cut_into_parts_are_the_layers_alone(self):
        """Whichever of them are adapted, and whatever their ranks."""
        shapes, (x, lora) = {"a": 4, "b": 6}, (self.x, self.lora)
        layers = {name: LoRADense(size, lora=lora) for name, size in shapes.items()}
        trees = {name: layer.init(jax.random.key(size), x)["params"] for name, (layer, size) in
                 zip(shapes, zip(layers.values(), shapes.values(), strict=True), strict=True)}  # fmt: skip
        trees["b"]["lora_b"] = jax.random.normal(jax.random.key(1), (3, 6))
        without = {name: trees["a"][name] for name in ("kernel", "bias")}
        thin = {**trees["b"], "lora_a": trees["b"]["lora_a"][:, :1], "lora_b": trees["b"]["lora_b"][:1]}
        for first, second in ((trees["a"], trees["b"]), (without, trees["b"]), (trees["a"], thin)):
            bound = [layers["a"].bind({"params": first}), layers["b"].bind({"params": second})]
            q, k, v = dense(x, *bound, cuts=(1, 2))
            np.testing.assert_allclose(q, layers["a"].apply({"params": first}, x), atol=1e-6)  # order 1
            both = layers["b"].apply({"params": second}, x)
            np.testing.assert_allclose(jnp.concatenate([k, v], axis=-1), both, rtol=1e-5, atol=1e-5)
