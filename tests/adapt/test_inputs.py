"""What the tower shares between heads, steps and seeds, where programs enter it, and its types."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import lora
from specjax.adapt import feature_cache, forward, inputs, objectives
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import draw_splits
from specjax.adapt.start import initial_leaves
from specjax.adapt.tower import Entry, entry_of, tower_features, tower_inputs
from specjax.foundation import Foundation
from specjax.models import SpecCLIP
from specjax.train import losses
from tests import synthetic
from tests.foundation.test_guards import products
from tests.models.tiny import TINY, random_system

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.CONFIG
SPLITS = draw_splits(40, seeds=3, train=20, validate=4)
CLOSE = {"rtol": 1e-4, "atol": 2e-4}  # float32 in batches of other shapes


def make(model=None, objective="sequential"):
    config = dataclasses.replace(synthetic.ADAPT, objective=objective, tower_scales=(1.0,))
    return Adaptation(model or synthetic.foundation(), synthetic.target(), SPLITS, config)


def run(adaptation, name):
    return adaptation.run(Configuration.parse(name))


def initial(adaptation, group, add=0.05):
    """Draw a group's factors, all of them moved so that they change something."""
    draw = initial_leaves(adaptation.model.config, Configuration.parse(group))
    drawn = draw(adaptation._groups[0].trainer.keys, adaptation.model.variables)
    return jax.tree.map(lambda leaf: leaf + add, drawn)


def features(adaptation, head, factors):
    """Features (S, n, d), or (n, d) without factors, of the labelled stars."""
    return adaptation.inputs.labelled_at(Entry("features"), (head,), factors)[0][head]


@pytest.fixture
def passes(monkeypatch):
    """Through the backbone: (with LoRA1, how many rows) of each call."""
    found, make_program = [], forward._backbone_program

    def counted(config, dtype):
        program = make_program(config, dtype)
        return lambda *given: found.append((bool(given[2]), len(given[3]))) or program(*given)

    monkeypatch.setattr(forward, "_backbone_program", counted)
    return found


def test_labelled_stars_pass_an_adapted_backbone_once(passes):
    """For both heads, with and without LoRA3; once more for the unlabelled ones that LoRA3 trains on."""
    adaptation = make()
    for name in ("zero-shot-mlp1", "zero-shot-mlp2", "lora1+lora2", "lora1+lora3+lora4", "lora1+lora4"):
        run(adaptation, name)
    # Four seeds (three, padded) share 64 rows at a time: 16 of 40 labelled, and then of 12 unlabelled stars.
    assert [rows for adapted, rows in passes if adapted] == [16, 16, 16, 16]
    assert [rows for adapted, rows in passes if not adapted] == [64]


def test_a_second_run_with_the_same_stars_skips_the_backbone_as_it_is(passes, tmp_path, monkeypatch):
    """Its features are on disk; those of LoRA1 are not."""
    monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path))
    monkeypatch.setenv(feature_cache.VARIABLE, "1")
    runs, adapted = [], []
    for _ in range(2):
        adaptation = make()
        runs.append([run(adaptation, name).predictions for name in ("lora3", "lora1")])
        adapted.append([with_lora1 for with_lora1, _ in passes])
        passes.clear()
    # Unlabelled and labelled stars; 40 of these, 16 at a time.
    assert adapted[0] == [False, False, True, True, True]
    assert adapted[1] == [True, True, True]
    np.testing.assert_array_equal(*runs)


def test_what_is_below_the_first_adapted_layer_runs_once(monkeypatch):
    """Of all joint configurations: each entry of the tower for all its steps, seeds and folds."""
    runs, run_inputs = [], inputs._tower_inputs
    monkeypatch.setattr(inputs, "_tower_inputs", lambda *given: runs.append(given[2]) or run_inputs(*given))
    adaptation = make(objective="joint")
    for name in ("lora1+lora2", "lora1+lora3+lora4", "lora1", "lora3+lora4", "lora2"):
        run(adaptation, name)
    assert runs == [Entry("block", 0)]


@pytest.mark.parametrize(
    ("name", "ranks", "entry"),
    [
        ("lora1+lora2", (), Entry("block", 0)),
        ("lora1+lora3+lora4", (("blocks_0", 0),), Entry("block", 1)),
        ("lora3+lora4", (), Entry("backbone")),
        ("lora4", (), Entry("features")),
        ("residual-mlp1", (), Entry("features")),
        ("full-mlp2", (), Entry("tokens")),
    ],
)
def test_a_program_enters_the_tower_at_the_first_layer_that_it_trains(name, ranks, entry):
    start = initial_leaves(TINY, Configuration.parse(name), ranks)
    keys = jax.random.split(jax.random.key(0), 1)
    assert entry_of(jax.eval_shape(start, keys, random_system())) == entry


@pytest.mark.parametrize("entry", [Entry("tokens"), Entry("block", 0), Entry("block", 1), Entry("backbone")])
def test_features_are_the_same_from_every_entry(entry):
    """They are what the model embeds."""
    model = Foundation(config=TINY, variables=random_system())
    flux = np.random.default_rng(0).normal(1, 0.1, (5, TINY.specformer.num_pixels)).astype(np.float32)
    tokens = objectives.tokens(TINY, flux, flux > -1)
    if entry.level == "backbone":
        given = model.backbone_features(flux)._asdict()
    else:
        given = tower_inputs(TINY, "float32", model.params, tokens, entry)
    found = tower_features(TINY, "float32", model.params, given, entry, ("mlp1", "mlp2"))
    np.testing.assert_allclose(found["mlp1"], model.mean_token(flux), **CLOSE)
    np.testing.assert_allclose(found["mlp2"], model.embed(flux), **CLOSE)


def test_rows_at_a_time_do_not_matter(monkeypatch):
    adaptation = make()
    factors = lora.combine(initial(adaptation, "lora1"), initial(adaptation, "lora3"))
    expected = features(adaptation, "mlp2", factors)
    monkeypatch.setattr(forward, "inference_batch_size", lambda config, size: 8)
    np.testing.assert_allclose(features(make(), "mlp2", factors), expected, **CLOSE)


def problem(level, dtype="float32", **weights):
    return objectives.Problem(
        config=CONFIG,
        dtype=dtype,
        entry=Entry(level),
        heads=(),
        objective=objectives.Objective(label=0.0, **weights),
        batch=6,
    )


def test_lora3_trains_on_one_vector_a_spectrum_as_on_its_tokens():
    """Value and gradient of its loss are those of the projection of all tokens."""
    params = synthetic.foundation().params
    tower = CONFIG.specformer
    tokens = np.random.default_rng(0).normal(size=(6, tower.num_tokens, tower.dim)).astype(np.float32)
    z_xp = np.random.default_rng(1).normal(size=(6, CONFIG.projection.dim)).astype(np.float32)
    factors = lora.init_adapters(jax.random.key(0), params, {"lora3": CONFIG.lora3})
    factors = jax.tree.map(lambda leaf: leaf + 0.05, factors)
    frozen = {"params": {"lamost": {"projection": params["lamost"]["projection"]}}}

    def by_tokens(factors):
        tower = {"lamost": {"backbone": {}, **frozen["params"]["lamost"]}}
        z = SpecCLIP(CONFIG, lora3=CONFIG.lora3).apply(
            {"params": lora.combine(tower, factors)},
            tokens,
            method=lambda model, x: model.lamost.projection(x),
        )
        return losses.contrastive(z_xp, z)

    mixed = SpecCLIP(CONFIG).apply({"params": params}, tokens, method=lambda m, x: m.lamost.projection.mix(x))
    loss = objectives.make_loss(problem("backbone", contrastive=1.0))
    shared = {"z_xp": z_xp, "pairs": {"mean": mixed, "mixed": mixed}}
    found = jax.value_and_grad(loss)(factors, frozen, shared, {}, jax.random.key(2))
    for one, other in zip(
        *map(jax.tree.leaves, (found, jax.value_and_grad(by_tokens)(factors))), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # float32, rows in another order


@pytest.mark.parametrize(("dtype", "half"), [("float32", 0.0), ("bfloat16", 1.0)])
def test_the_products_of_the_towers_have_the_models_type(dtype, half):
    """Of both losses and of the embedding; what is trained stays float32."""
    params = synthetic.foundation().params
    tower = CONFIG.specformer
    tokens = np.zeros((12, tower.num_tokens, tower.token_dim), np.float32)
    z = np.zeros((12, CONFIG.projection.dim), np.float32)
    cases = [
        ("lora1", problem("tokens", dtype, masked=1.0), {"pool": tokens, "in_pool": np.ones(12, bool)}),
        ("lora3", problem("backbone", dtype, contrastive=1.0), {"z_xp": z, "pairs": {"mean": z, "mixed": z}}),
    ]
    for group, case, shared in cases:
        loss = objectives.make_loss(case)
        factors = lora.init_adapters(jax.random.key(0), params, {group: CONFIG.loras[group]})
        given = (factors, {"params": {"lamost": params["lamost"]}}, shared, {}, jax.random.key(0))
        assert half_share(jax.value_and_grad(loss), *given) == pytest.approx(half, abs=0.2), group
        gradient = jax.eval_shape(jax.grad(loss), *given)
        assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype(np.float32)}
    flux = np.ones((6, tower.num_pixels), np.float32)
    embed = forward._backbone_program(CONFIG, dtype)
    given = (np.arange(1), {"lamost": params["lamost"]}, {}, flux, flux > 0)
    assert half_share(embed, *given) == pytest.approx(half, abs=0.05)
    assert {leaf.dtype for leaf in jax.eval_shape(embed, *given)} == {np.dtype(np.float32)}


def half_share(function, *given):
    """The share of the work in matrix products that is in bfloat16."""
    size = {True: 0, False: 0}
    for equation in products(jax.make_jaxpr(function)(*given).jaxpr):
        left, right = (variable.aval for variable in equation.invars)
        size[left.dtype == right.dtype == jnp.bfloat16] += left.size * equation.outvars[0].aval.shape[-1]
    return size[True] / sum(size.values())


def test_an_adaptation_in_half_precision_is_close():
    model = dataclasses.replace(synthetic.foundation(), dtype="bfloat16")
    exact, close = (features(make(m), "mlp2", {}) for m in (synthetic.foundation(), model))
    error = float(jnp.sqrt(jnp.mean((close - exact) ** 2)) / exact.std())
    assert 1e-5 < error < 0.03  # bfloat16 holds 8 bits, 0.4% at worst, in a dozen layers
    assert close.dtype == np.float32
