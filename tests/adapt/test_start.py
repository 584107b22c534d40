"""Where low-rank factors start: PiSSA leaves the model unchanged, and EVA spans the inputs of a layer."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from specjax import lora
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import predict_label, standardise_features
from specjax.adapt.splits import draw_splits
from specjax.adapt.start import as_updates, initial_leaves, principal_factors
from specjax.adapt.tower import entry_of, tower_features
from specjax.errors import ConfigError
from specjax.models.specformer import SpecFormer
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.CONFIG
SPLITS = draw_splits(40, seeds=2, train=20, validate=4)
EVERYTHING = Configuration.parse("lora1+lora2+lora3+lora4")


@pytest.fixture(scope="module")
def model():
    return synthetic.foundation()


def make(model, start, **changes):
    config = dataclasses.replace(synthetic.ADAPT, start=start, **changes)
    return Adaptation(model, synthetic.target(), SPLITS, config)


def started(model, start):
    """Leaves (S, ...) and frozen parameters with which training starts."""
    trainer = make(model, start)._groups[0].trainer
    leaves = initial_leaves(CONFIG, EVERYTHING)(trainer.keys, model.variables)
    entry = entry_of(leaves)
    inputs, own = trainer.inputs.labelled_at(entry, EVERYTHING.heads, {})
    frozen = trainer._frozen(entry, EVERYTHING.heads)
    return *trainer._started(leaves, frozen, entry, inputs, own), inputs, entry


def kernels(tree):
    return {path: np.asarray(leaf, float) for path, leaf in flatten_dict(tree, sep="/").items()}


class TestPissa:
    def test_the_model_is_unchanged_at_the_start(self, model):
        leaves, frozen, inputs, entry = started(model, "pissa")
        one = jax.tree.map(lambda leaf: leaf[0], leaves)
        args = CONFIG, "float32", lora.overlay(frozen["params"], one), inputs, entry, ("mlp1", "mlp2")
        begun = tower_features(*args)
        as_it_is = tower_features(*args[:2], dict(model.params), *args[3:])
        for head in begun:
            # The kernel is a sum of two float32 matrices instead of one.
            np.testing.assert_allclose(begun[head], as_it_is[head], rtol=1e-4, atol=1e-4)

    def test_what_stays_frozen_has_lost_the_leading_directions(self, model):
        leaves, frozen, _, _ = started(model, "pissa")
        rest, whole = kernels(frozen["params"]), kernels(dict(model.params))
        for layer in lora.adapted_layers(leaves):
            rank = flatten_dict(leaves, sep="/")[f"{layer}/lora_a"].shape[-1]
            before, after = (
                np.linalg.svd(tree[f"{layer}/kernel"], compute_uv=False) for tree in (whole, rest)
            )
            kept = before.shape[-1] - min(rank, before.shape[-1])
            expected = before[..., before.shape[-1] - kept :]
            np.testing.assert_allclose(after[..., :kept], expected, atol=1e-5 * before.max())  # float32
            assert after[..., kept:].max(initial=0) < 1e-5 * before.max()

    def test_updates_are_the_trained_product_less_the_first(self, model):
        keys = jax.vmap(jax.random.key)(np.arange(2))
        fresh = initial_leaves(CONFIG, EVERYTHING)(keys, model.variables)
        start = principal_factors(fresh, dict(model.params), CONFIG)
        rng = np.random.default_rng(0)

        def moved(leaf):  # (S, runs, snapshots, ...)
            return np.asarray(leaf)[:, None, None] + 0.1 * rng.normal(size=(2, 3, 2, *leaf.shape[1:]))

        trained = jax.tree.map(moved, start)
        updates = flatten_dict(as_updates(trained, start), sep="/")
        trained, start = flatten_dict(trained, sep="/"), flatten_dict(start, sep="/")
        for path in updates:
            layer, _, name = path.rpartition("/")
            if name == "lora_a":
                other = f"{layer}/lora_b"
                expected = trained[path] @ trained[other] - (start[path] @ start[other])[:, None, None]
                np.testing.assert_allclose(updates[path] @ updates[other], expected, atol=1e-5)  # float32


class TestEva:
    def test_factors_span_the_leading_directions(self, model):
        """The inputs of the first layers, computed here by other means."""
        leaves, _, inputs, _ = started(model, "eva")
        leaves = flatten_dict(leaves, sep="/")
        backbone = {"params": model.params["lamost"]["backbone"]}
        block = SpecFormer(CONFIG.specformer).bind(backbone).blocks[0]
        adaptation = make(model, "eva")
        features = model.head_features(adaptation.inputs.base, "mlp1")
        given = {
            "lamost/backbone/blocks_0/attention/q_proj": np.asarray(block.ln1(inputs["hidden"])),
            "lamost/projection/cross_attention/out_proj": np.asarray(adaptation.inputs.base.mixed),
        }
        for seed, rows in enumerate(SPLITS.train):
            for layer, x in given.items():
                check_span(x[rows].reshape(-1, x.shape[-1]), leaves[f"{layer}/lora_a"][seed])
            x = standardise_features(model, "mlp1", features)[rows]
            for member in range(CONFIG.head.members):
                check_span(x, leaves["mlp1/dense_0/lora_a"][seed, member])

    def test_members_of_a_head_have_their_own_directions_beyond_the_first_layer(self, model):
        leaves = flatten_dict(started(model, "eva")[0], sep="/")
        first, second = (leaves[f"mlp1/dense_{k}/lora_a"][0] for k in range(2))
        np.testing.assert_array_equal(first[0], first[1])
        assert np.abs(second[0] - second[1]).max() > 0.1

    def test_the_model_is_unchanged_at_the_start(self, model):
        leaves, frozen, _, _ = started(model, "eva")
        assert not any(leaf.any() for path, leaf in kernels(leaves).items() if path.endswith("lora_b"))
        assert frozen["params"]["mlp1"] is model.params["mlp1"]


def check_span(x, a):
    """The orthonormal columns of a (in, r) hold as much of x (m, in) as its first r singular vectors."""
    rank = a.shape[1]
    np.testing.assert_allclose(a.T @ a, np.eye(rank), atol=1e-5)  # float32
    singular = np.linalg.svd(np.asarray(x, float), compute_uv=False)
    kept = np.linalg.norm(np.asarray(x, float) @ a, axis=0)
    # Each direction in its order; weak ones are lost in the float32 sums of squares of the strong ones.
    count = min(rank, len(singular))
    np.testing.assert_allclose(kept[:count], singular[:count], rtol=1e-3, atol=1e-3 * singular[0])


@pytest.mark.parametrize("start", ["pissa", "eva"])
@pytest.mark.parametrize("name", ["lora2", pytest.param("lora1+lora3+lora4", marks=pytest.mark.slow)])
def test_an_adapter_predicts_what_its_training_did(model, start, name):
    adaptation = make(model, start)
    result = adaptation.run(Configuration.parse(name))
    found = predict_label(
        model, result.configuration.heads, result.adapters, synthetic.target().labelled, "fe_h"
    )
    np.testing.assert_allclose(found, result.predictions, rtol=1e-4, atol=2e-4)  # batches of other shapes
    assert result.chosen["head"].any()
    as_it_is = adaptation._as_it_is(result.configuration.heads)
    truth = synthetic.target().truth
    errors = [np.abs(p - truth)[SPLITS.test].mean() for p in (result.predictions[0], as_it_is)]
    assert errors[0] < errors[1]


def test_an_unknown_start_is_refused():
    with pytest.raises(ConfigError, match="factors start by random, pissa, eva, not 'svd'"):
        dataclasses.replace(synthetic.ADAPT, start="svd")
