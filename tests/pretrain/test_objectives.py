"""The published objectives on tiny models: what enters them, and that how they are computed is the same."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.config import ProjectionConfig
from specjax.errors import ConfigError
from specjax.pretrain import objectives
from specjax.pretrain.config import Compute, PretrainConfig
from specjax.pretrain.objectives import Alignment, WithAuxiliaryHead, remove_backbones, retrieval
from specjax.pretrain.source import streamed_draw
from specjax.train import losses
from tests.models.tiny import TINY as PLAIN
from tests.models.tiny import random_system

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = PretrainConfig.published("paper")
KEY = jax.random.key(4)
TINY = dataclasses.replace(
    PLAIN, specformer=dataclasses.replace(PLAIN.specformer, mask_chunks=2, mask_width=3)
)
BASE = dataclasses.replace(TINY, decoder=None)
SPLIT = dataclasses.replace(
    TINY, projection=ProjectionConfig(shared_dim=12, private_dim=6, num_heads=(3, 2), feature_hidden=10)
)
DRAW = streamed_draw(False)


def batch(n=8):
    rng = np.random.default_rng(0)
    flux, xp = (jnp.asarray(rng.normal(1, 0.2, (n, p)), jnp.float32) for p in (41, 23))
    return {
        "flux": flux,
        "valid": jnp.ones(flux.shape, bool),
        "xp_flux": xp,
        "xp_valid": jnp.ones(xp.shape, bool),
    }


def problem(model):
    system = jax.tree.map(jnp.asarray, random_system(model))
    rest = {name: tree for name, tree in system["params"].items() if not name.startswith("mlp")}
    params, backbones = remove_backbones(rest)
    stats = {name: t for name, t in system.get("batch_stats", {}).items() if not name.startswith("mlp")}
    return WithAuxiliaryHead(params, {}), stats, {"batch": batch(), "backbones": backbones}


def value_and_grad(loss, params, stats, data):
    (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, stats, data, KEY)
    return value, grads


def test_the_backbone_learns_from_hidden_tokens_of_all_spectra_alone():
    backbone = problem(TINY)[2]["backbones"]["lamost"]
    loss = objectives.backbone_loss(CONFIG, TINY, DRAW)
    data = {"batch": batch()}
    value, (stats, metrics) = jax.jit(loss)(WithAuxiliaryHead(backbone, {}), {}, data, KEY)
    assert (stats, metrics) == ({}, {})
    mask_key = jax.random.split(KEY)[1]
    hidden = losses.chunk_mask(mask_key, 8, TINY.specformer)
    assert hidden.any(axis=1).all()
    perfect = losses.masked_modelling(
        jnp.zeros((8, *hidden.shape[1:], 7)), jnp.zeros((8, *hidden.shape[1:], 7)), hidden
    )
    assert perfect == 0 < value


@pytest.mark.parametrize("compute", [Compute(remat="dots"), Compute(remat="full")], ids=str)
def test_computing_blocks_twice_changes_nothing(compute):
    params, data = WithAuxiliaryHead(problem(TINY)[2]["backbones"]["lamost"], {}), {"batch": batch()}
    results = [
        value_and_grad(objectives.backbone_loss(CONFIG, TINY, DRAW, one), params, {}, data)
        for one in (Compute(), compute)
    ]
    chex.assert_trees_all_close(
        results[1], results[0], rtol=1e-5, atol=1e-7
    )  # float32, fused in another order


def test_half_precision_keeps_parameters_and_gradients_in_single():
    params, data = WithAuxiliaryHead(problem(TINY)[2]["backbones"]["lamost"], {}), {"batch": batch()}
    single, half = (
        value_and_grad(objectives.backbone_loss(CONFIG, TINY, DRAW, Compute(dtype=dtype)), params, {}, data)
        for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(half[0], single[0], rtol=0.02)  # bfloat16 has 8 bits
    assert half[0] != single[0]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(BASE, id="base"),
        pytest.param(TINY, id="pr", marks=pytest.mark.slow),
        pytest.param(SPLIT, id="split", marks=pytest.mark.slow),
    ],
)
def test_alignment_embedded_in_parts_is_that_of_the_whole_batch(model):
    params, stats, data = problem(model)
    results = [
        value_and_grad(Alignment(CONFIG, model, DRAW, Compute(accumulate=parts)).loss, params, stats, data)
        for parts in (1, 4)
    ]
    # float32: matrix products of other shapes, before the decoders divide by the scatter of eight rows
    chex.assert_trees_all_close(results[1], results[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("model", "names"), [
    (TINY, {"contrastive", "reconstruction", "cross_prediction"}),
    (BASE, {"contrastive"}),
])  # fmt: skip
def test_the_terms_are_weighted_equally(model, names):
    found = jax.jit(Alignment(CONFIG, model, DRAW).evaluate)(*problem(model), KEY)
    assert found.keys() == {"loss", "top-1", "top-5", *names}
    np.testing.assert_allclose(found["loss"], sum(found[name] for name in names), rtol=1e-6)


def test_the_private_part_is_not_contrasted():
    params, stats, data = problem(SPLIT)
    objective = Alignment(CONFIG, SPLIT, DRAW)

    def contrastive(params):
        return objective.evaluate(params, stats, data, KEY)["contrastive"]

    grads = jax.jit(jax.grad(contrastive))(params).model
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads["gaia_xp"]):
        private = "private" in jax.tree_util.keystr(path)
        assert (np.abs(leaf).max() == 0) == private, path


def test_backbones_get_no_gradient_and_evaluation_no_dropout():
    params, stats, data = problem(TINY)
    objective = Alignment(CONFIG, TINY, DRAW)
    evaluate = jax.jit(objective.evaluate)
    first, second = (evaluate(params, stats, data, jax.random.key(k)) for k in (0, 1))
    chex.assert_trees_all_equal(first, second)
    assert "backbone" not in params.model["lamost"]


def test_retrieval_counts_partners_among_the_most_similar():
    z = np.eye(6, 8, dtype=np.float32)
    assert {name: float(v) for name, v in retrieval(jnp.asarray(z), jnp.asarray(3 * z)).items()} == {
        "top-1": 1.0, "top-5": 1.0
    }  # fmt: skip
    others = np.roll(z, 1, axis=0)  # each partner is orthogonal, another spectrum is identical
    assert float(retrieval(jnp.asarray(z), jnp.asarray(others))["top-1"]) == 0


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"remat": "some"}])
def test_unknown_ways_to_compute_are_refused(options):
    with pytest.raises(ConfigError, match=r"must be (float32 or bfloat16|none or dots or full)"):
        Compute(**options)
