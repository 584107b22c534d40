"""Predictions with the adapters of all seeds at once against those of each seed merged into the model."""

import jax
import numpy as np
import pytest

from specjax import lora
from specjax.adapt import forward
from specjax.adapt.tower import Entry
from specjax.foundation import Foundation, inference
from tests.models.tiny import TINY, random_system

STATS = {"label_mean": np.array([5000.0, -0.5], np.float32), "label_std": np.array([600.0, 0.4], np.float32)}
SEEDS = 3
# Unmerged factors and other batch shapes: float32, in labels of order 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model():
    return Foundation(config=TINY, variables=random_system(), stats={"mlp1": STATS, "mlp2": STATS})


def spectra(n, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.1, (n, TINY.specformer.num_pixels))


def adapters(model, *groups):
    """Factors of S seeds, all of them moved so that they change something."""
    configs = {group: TINY.loras[group] for group in groups}
    keys = jax.random.split(jax.random.key(0), SEEDS)
    drawn = jax.vmap(lambda key: lora.init_adapters(key, dict(model.params), configs))(keys)
    return jax.tree.map(lambda leaf: leaf + 0.05, drawn)


def of_seed(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def merged(model, heads, tree, flux, label="fe_h"):
    """The mean over heads of each seed's predictions with its factors merged into the model."""
    return [
        np.mean([model.predict(flux, head, adapters=of_seed(tree, k))[label] for head in heads], axis=0)
        for k in range(SEEDS)
    ]


@pytest.mark.parametrize(
    ("groups", "heads"),
    [
        (("lora2",), ("mlp1",)),
        (("lora4",), ("mlp2",)),
        (("lora3", "lora4"), ("mlp2",)),
        (("lora1", "lora4"), ("mlp2",)),
        (("lora1", "lora2", "lora3", "lora4"), ("mlp1", "mlp2")),
        (("lora1",), ("mlp1",)),
    ],
)
def test_all_seeds_predict_as_each_one_merged(model, groups, heads):
    tree, flux = adapters(model, *groups), spectra(11)
    for label in TINY.labels:
        found = forward.predict_label(model, heads, tree, flux, label)
        assert found.shape == (SEEDS, 11)
        assert found.dtype == np.float64
        expected = merged(model, heads, tree, flux, label)
        scale = STATS["label_std"][TINY.labels.index(label)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * scale)
    assert len(np.unique(found, axis=0)) == SEEDS


def test_without_an_adapter_the_model_predicts_as_it_is(model):
    found = forward.predict_label(model, ("mlp2",), {}, spectra(5), "fe_h")
    np.testing.assert_allclose(found[0], model.predict(spectra(5))["fe_h"], **CLOSE)


@pytest.mark.parametrize(("groups", "passes"), [(("lora3", "lora4"), 1), (("lora1", "lora4"), 0)])
def test_seeds_share_one_pass_through_a_backbone_that_none_adapts(model, groups, passes, monkeypatch):
    calls, run = [], inference._run
    monkeypatch.setattr(inference, "_run", lambda *given: calls.append(given[1]) or run(*given))
    tree, flux = adapters(model, *groups), spectra(3)
    alone = forward.predict_label(model, ("mlp2",), tree, flux, "fe_h")
    assert len(calls) == passes  # LoRA1 runs it with each seed's factors, in the program of the labels
    features = model.backbone_features(flux)
    calls.clear()
    np.testing.assert_array_equal(
        forward.predict_label(model, ("mlp2",), tree, flux, "fe_h", features), alone
    )
    assert not calls


def test_leaves_that_replace_those_of_the_model_are_each_seeds_own(model):
    """A head trained as a whole; and a query that pools the tokens, which changes the features."""
    query = np.stack([np.full((1, 1, 28), value, np.float32) for value in (1, 0, -1)])
    bias = np.stack([np.full(2, value, np.float32) for value in (1, 2, 3)])
    pooling = {"lamost": {"projection": {"cross_attention": {"query": query}}}}
    head = {"mlp2": {"dense_2": {"bias": bias}}}
    assert forward.changes_backbone(pooling)
    assert not forward.changes_backbone(head)
    for tree in (pooling, head, {**pooling, **head}):
        found = forward.predict_label(model, ("mlp2",), tree, spectra(4), "fe_h")
        np.testing.assert_allclose(found, merged(model, ("mlp2",), tree, spectra(4)), **CLOSE)


def test_rows_at_a_time_do_not_matter_and_compile_little(model, monkeypatch):
    tree, flux = adapters(model, "lora4"), spectra(150)
    whole = forward.predict_label(model, ("mlp2",), tree, flux, "fe_h")
    monkeypatch.setattr(forward, "MANY_ROWS", 64)
    np.testing.assert_allclose(forward.predict_label(model, ("mlp2",), tree, flux, "fe_h"), whole, **CLOSE)
    program = forward._label_program(TINY, ("mlp2",), "float32", False)
    compiled = program._cache_size()
    for n in (1, 7, 63, 65):
        forward.predict_label(model, ("mlp2",), tree, flux[:n], "fe_h")
    assert program._cache_size() == compiled


def test_features_of_seeds_are_those_of_each_seed_alone(model):
    tree, data = adapters(model, "lora1"), model.model_input(spectra(5))
    found = forward.backbone(model, tree, data)
    for seed in range(SEEDS):
        expected = model.adapted(of_seed(tree, seed)).backbone_features(spectra(5))
        np.testing.assert_allclose(found.mean[seed], expected.mean, **CLOSE)
        np.testing.assert_allclose(found.mixed[seed], expected.mixed, **CLOSE)
    third = adapters(model, "lora3")
    rows = np.tile(np.arange(5), (SEEDS, 1))
    z = forward.features(model, ("mlp2",), third, expected._asdict(), Entry("backbone"), rows)["mlp2"]
    for seed in range(SEEDS):
        one = model.adapted(of_seed(third, seed)).head_features(expected, "mlp2")
        np.testing.assert_allclose(z[seed], one, **CLOSE)
