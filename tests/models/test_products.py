import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.foundation.networks import Networks
from specjax.models import SpecCLIP
from specjax.models.products import FULL, low_rank, token_mean
from specjax.train import losses
from tests.models.tiny import TINY, precisions, random_system

RNG = np.random.default_rng(3)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_the_mean_over_tokens_also_under_transformations():
    tokens = normal(2, 4, 5, 6)
    # The same sums as NumPy in another order.
    np.testing.assert_allclose(jax.vmap(token_mean)(tokens), np.mean(tokens, axis=2), atol=1e-6)
    gradient = jax.grad(lambda x: token_mean(x).sum())(tokens[0])
    np.testing.assert_allclose(gradient, np.full((4, 5, 6), 1 / 5), rtol=1e-6)


def test_derivatives_of_low_rank_terms_are_those_of_the_formula():
    """Of two layers of different ranks, one cut in two; under a vmap over factors that does not batch x."""
    x, downs = normal(2, 5, 7), [normal(2, 7, 3), normal(2, 7, 2)]
    ups = [[normal(2, 3, 4)], [normal(2, 2, 4), normal(2, 2, 4)]]
    gradients = [[normal(2, 5, 4)], [normal(2, 5, 4), normal(2, 5, 4)]]

    def plain(x, downs, ups, scale):
        return [[scale * (x @ down @ up) for up in parts] for down, parts in zip(downs, ups, strict=True)]

    def derivatives(function):
        def one(downs, ups):
            values, pull = jax.vjp(lambda *given: function(*given, 1.5), x, downs, ups)
            return values, pull(gradients)

        return jax.vmap(one)(downs, ups)

    chex.assert_trees_all_close(
        derivatives(low_rank), derivatives(plain), rtol=1e-5, atol=1e-5
    )  # sums of 10 products


PROGRAMS = [getattr(Networks, name) for name in vars(Networks) if name.startswith(("lamost_", "xp_"))]
SYSTEM = random_system()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_no_product_of_inference_leaves_its_precision_to_the_device(program):
    """A GPU would round the operands to TF32."""
    reads_xp = program.__name__.startswith("xp") is not program.__name__.endswith("translated")
    pixels = (TINY.xp_autoencoder if reads_xp else TINY.specformer).num_pixels
    networks = Networks(TINY, SYSTEM)
    found = precisions(lambda flux: program(networks, flux, jnp.ones(flux.shape, bool)), normal(2, pixels))
    assert found == {(FULL, FULL)}


def test_nor_does_one_of_pretraining():
    flux, xp = normal(2, TINY.specformer.num_pixels), normal(2, TINY.xp_autoencoder.num_pixels)

    def loss(params):
        z, z_xp, decoded = SpecCLIP(TINY).apply({**SYSTEM, "params": params}, flux, xp)
        return losses.contrastive(z, z_xp) + sum(leaf.sum() for leaf in decoded.values())

    found = precisions(jax.grad(loss), SYSTEM["params"])
    assert found == {(FULL, FULL)}
