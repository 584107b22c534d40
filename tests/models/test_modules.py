"""Shapes, parameter counts and behaviour of the modules; tests/checkpoints_convert tests their arithmetic."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.config import DecoderConfig, LabelHeadConfig, LoRAConfig, ModelConfig, ProjectionConfig
from specjax.errors import ModelError
from specjax.lora import count_parameters
from specjax.models import LabelHead, SpecCLIP, SpecFormer, XPAutoencoder, xp_flux, xp_vector
from specjax.models.decoders import Decoder
from specjax.models.layers import gelu
from tests.models.tiny import TINY, random_like, random_system

PAPER = ModelConfig()
SPLIT = dataclasses.replace(
    PAPER,
    projection=ProjectionConfig(shared_dim=512, private_dim=256),
    decoder=DecoderConfig(lamost_hidden=(2048, 2048, 2048), gaia_xp_hidden=(2048, 1024, 512)),
)


def shapes_of(module, *shapes):
    """Return the shapes of the variables without allocating them."""
    return jax.eval_shape(module.init, jax.random.key(0), *(jnp.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("module", "inputs", "count"),
    [
        (SpecFormer(PAPER.specformer), [(1, 146, 21)], 42_677_013),
        (XPAutoencoder(PAPER.xp_autoencoder), [(1, 345)], 42_846_129),
        (SpecCLIP(PAPER), [(1, 1462), (1, 343)], 168_293_752),
        (SpecCLIP(SPLIT), [(1, 1462), (1, 343)], 126_229_506),
        (LabelHead(PAPER.head), [(1, 768)], 1_348_353),
    ],
    ids=["lamost_encoder", "xp_autoencoder", "pr", "split", "label_head"],
)
def test_published_parameter_counts(module, inputs, count):
    assert count_parameters(shapes_of(module, *inputs)["params"]) == count


@pytest.fixture(scope="module")
def specclip():
    rng = np.random.default_rng(0)
    lamost = rng.normal(3, 1, (4, TINY.specformer.num_pixels)).astype(np.float32)
    gaia_xp = rng.normal(3, 1, (4, TINY.xp_autoencoder.num_pixels)).astype(np.float32)
    system = random_system()
    for tree in system.values():
        del tree["mlp1"], tree["mlp2"]
    return system, lamost, gaia_xp


def test_specclip_shapes(specclip):
    variables, lamost, gaia_xp = specclip
    z_lamost, z_xp, extras = jax.eval_shape(SpecCLIP(TINY).apply, variables, lamost, gaia_xp)
    assert z_lamost.shape == z_xp.shape == (4, TINY.projection.dim)
    assert {name: value.shape[1] for name, value in extras.items()} == {
        "lamost": 41,
        "lamost_cross": 41,
        "gaia_xp": 23,
        "gaia_xp_cross": 23,
    }


def test_the_tree_has_the_names_that_the_lora_rules_expect(specclip):
    params = specclip[0]["params"]
    assert params.keys() == {
        "lamost",
        "gaia_xp",
        "lamost_decoder",
        "lamost_cross_decoder",
        "gaia_xp_decoder",
        "gaia_xp_cross_decoder",
    }
    assert params["lamost"].keys() == params["gaia_xp"].keys() == {"backbone", "projection"}


def test_training_mode_returns_new_batch_statistics(specclip):
    variables, lamost, gaia_xp = specclip
    train = functools.partial(SpecCLIP(TINY).apply, train=True, mutable=["batch_stats"])
    _, update = jax.eval_shape(train, variables, lamost, gaia_xp, rngs={"dropout": jax.random.key(0)})
    shapes = jax.tree.map(np.shape, variables["batch_stats"])
    assert jax.tree.map(lambda leaf: leaf.shape, update["batch_stats"]) == shapes


def test_a_decoder_in_training_applies_dropout_and_updates_the_statistics_by_a_tenth(specclip):
    variables = {name: tree["gaia_xp_decoder"] for name, tree in specclip[0].items()}
    decoder = Decoder(TINY.decoder.gaia_xp_hidden, 23, dropout=0.5)
    z = np.random.default_rng(0).normal(size=(6, TINY.projection.dim)).astype(np.float32)

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return decoder.apply(variables, z, train=True, rngs=rngs, mutable=["batch_stats"])

    (one, update), (other, _) = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(one - other).max() > 0
    first = variables["params"]["dense_0"]
    batch_mean = gelu(z @ first["kernel"] + first["bias"]).mean(axis=0)
    expected = 0.9 * variables["batch_stats"]["norm_0"]["mean"] + 0.1 * batch_mean
    # float32 means of numbers of order 1
    np.testing.assert_allclose(update["batch_stats"]["norm_0"]["mean"], expected, atol=1e-6)


def test_without_decoders_there_are_no_extras():
    config = dataclasses.replace(TINY, decoder=None)
    inputs = jnp.ones((1, 41)), jnp.ones((1, 23))
    variables = jax.eval_shape(SpecCLIP(config).init, jax.random.key(0), *inputs)
    assert variables.keys() == {"params"}
    _, _, extras = jax.eval_shape(SpecCLIP(config).apply, variables, *inputs)
    assert extras == {}
    with pytest.raises(ModelError, match="no decoders"):
        SpecCLIP(config).apply(variables, jnp.ones((1, 28)), "lamost", method="reconstruct")


def test_xp_vector_and_back():
    flux = np.random.default_rng(0).normal(1, 0.2, (3, 23)).astype(np.float32)
    np.testing.assert_allclose(xp_flux(xp_vector(flux)), flux, rtol=1e-5)  # four float32 operations


class TestLabelHeadMembers:
    config = LabelHeadConfig(hidden_dims=(6, 5), num_labels=2, members=3)
    lora = LoRAConfig(rank=2, alpha=2.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7)), jnp.float32)

    def test_members_add_a_leading_axis(self):
        many = shapes_of(LabelHead(self.config, lora=self.lora), (4, 7))
        one = shapes_of(LabelHead(dataclasses.replace(self.config, members=1), lora=self.lora), (4, 7))
        assert jax.tree.map(lambda leaf: (3, *leaf.shape), one) == jax.tree.map(lambda leaf: leaf.shape, many)

    def test_the_output_is_the_mean_of_independent_heads(self):
        head = LabelHead(self.config)
        variables = random_like(shapes_of(head, self.x.shape))
        single = LabelHead(dataclasses.replace(self.config, members=1))
        apply = jax.jit(single.apply)
        alone = [apply(jax.tree.map(lambda leaf, m=m: leaf[m], variables), self.x) for m in range(3)]
        # float32: batched and single matrix products may sum in another order
        each = jax.jit(functools.partial(head.apply, per_member=True))(variables, self.x)
        np.testing.assert_allclose(each, alone, atol=2e-6)
        mean = jax.jit(head.apply)(variables, self.x)
        np.testing.assert_allclose(mean, np.mean(alone, axis=0), atol=2e-6)

    def test_members_are_initialised_independently(self):
        kernel = jax.jit(LabelHead(self.config).init)(jax.random.key(0), self.x)["params"]["dense_0"][
            "kernel"
        ]
        assert np.abs(kernel[0] - kernel[1]).max() > 0.1
