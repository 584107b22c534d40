"""What keeps the programs fast, asked of the compiler and not of a clock.

The guards of the training loop (FLOPs of a LoRA step, arguments against seeds, transfers, recompilation) are
in train/test_loop.py and test_lora.py; these are of embedding, of the towers and of the frozen base.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flop_counts
from specjax import lora
from specjax.adapt import objectives
from specjax.adapt.objectives import Objective, Problem
from specjax.adapt.tower import Entry
from specjax.config import get_preset
from specjax.foundation import Foundation, inference
from specjax.foundation.networks import Networks
from specjax.models import LabelHead, SpecCLIP
from specjax.train import loop
from specjax.train.optimizer import GroupSchedule, make_optimizer
from tests.models.tiny import TINY, random_system

MINI, PAPER = get_preset("mini"), get_preset("paper")
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def model():
    return Foundation(config=TINY, variables=random_system())


def spectra(n, pixels=TINY.specformer.num_pixels):
    return np.random.default_rng(0).normal(1, 0.1, (n, pixels)).astype(np.float32)


def shapes(config):
    """The variables of a model, as shapes."""
    pixels, samples = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
    inputs = (jnp.zeros((1, size)) for size in (pixels, samples))
    return jax.eval_shape(SpecCLIP(config).init, jax.random.key(0), *inputs)


def lowered(config, program, rows=2, dtype="float32"):
    flux, valid = (
        jax.ShapeDtypeStruct((rows, config.specformer.num_pixels), kind) for kind in (np.float32, bool)
    )
    return inference._run.lower(config, program, dtype, shapes(config), flux, valid)


@pytest.mark.parametrize("config", [MINI, PAPER], ids=["mini", "paper"])
def test_the_floors_of_the_benchmarks_are_what_the_compiler_counts(config):
    """Norms, GELU, softmax and standardisation come on top: little, and more in a narrow model."""
    tower = flop_counts.lamost_tower(config.specformer)
    on_paper = {
        Networks.lamost_mean: tower,
        Networks.lamost_z: tower + flop_counts.lamost_projection(config),
    }
    for program, flops in on_paper.items():
        counted = lowered(config, program).cost_analysis()["flops"] / 2
        assert 1 < counted / flops < (1.15 if config is MINI else 1.03), program


def test_pooling_makes_no_keys_and_values():
    """They would be two products with all tokens; one query needs a vector a head instead."""
    keys_and_values = 2 * 2 * PAPER.specformer.num_tokens * PAPER.specformer.dim * PAPER.projection.dim
    projected, pooled = (
        lowered(PAPER, program).cost_analysis()["flops"] / 2
        for program in (Networks.lamost_z, Networks.lamost_mean)
    )
    assert projected - pooled < 0.1 * keys_and_values


def products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from products(inner.jaxpr)


def test_in_half_precision_all_large_products_are():
    flux, valid = (jax.ShapeDtypeStruct((64, 1462), kind) for kind in (np.float32, bool))
    for dtype, share in (("bfloat16", 1.0), ("float32", 0.0)):
        traced = inference._run.trace(MINI, Networks.lamost_z, dtype, shapes(MINI), flux, valid)
        size = {True: 0, False: 0}
        for equation in products(traced.jaxpr.jaxpr):
            left, right = (variable.aval for variable in equation.invars)
            half = left.dtype == right.dtype == jnp.bfloat16
            size[half] += left.size * equation.outvars[0].aval.shape[-1]
        # What does not grow with the rows, such as the one query, stays float32.
        assert size[True] / sum(size.values()) == pytest.approx(share, abs=0.01)


def test_half_precision_moves_an_embedding_little(model):
    half = dataclasses.replace(model, dtype="bfloat16")
    for survey, pixels in (("lamost", 41), ("gaia_xp", 23)):
        exact, close = model.embed(spectra(8, pixels), survey), half.embed(spectra(8, pixels), survey)
        assert close.dtype == np.float32
        error = np.sqrt(np.mean((close - exact) ** 2)) / exact.std()
        # bfloat16 holds 8 bits, 0.4% at worst; a dozen layers of them add up in quadrature
        assert 1e-5 < error < 0.02
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}


def test_an_epoch_of_odd_batches_compiles_nothing(model):
    """Whatever the number of rows, and for another model of the same sizes."""
    for rows in (1, 64):
        model.predict(spectra(rows), "mlp2")
    events = []

    def heard(name, duration, **about):
        events.append(name)

    other = Foundation(config=TINY, variables=random_system(seed=1))
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        for rows in (1, 3, 8, 9, 63, 64, 65, 150):
            other.predict(spectra(rows), "mlp2")
        assert COMPILED not in events
        jax.jit(lambda x: x + len(events))(jnp.ones(7))  # the guard of the guard
        assert COMPILED in events
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def test_one_buffer_holds_the_frozen_base(model):
    """Embedding, a head's labels and a second model of the same weights read the arrays of the first."""
    kernel = model.params["lamost"]["backbone"]["blocks_0"]["mlp"]["encoder"]["kernel"]
    # Held by nothing else of this shape: one array a block.
    before = sum(array.shape == kernel.shape for array in jax.live_arrays())
    model.embed(spectra(3))
    model.predict(spectra(3), "mlp1")
    twin = dataclasses.replace(model, stats={})
    twin.embed(spectra(3))
    after = [array for array in jax.live_arrays() if array.shape == kernel.shape]
    assert len(after) == before
    shared = twin.params["lamost"]["backbone"]["blocks_0"]["mlp"]["encoder"]["kernel"]
    assert shared.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer()


def test_heads_of_an_ensemble_run_as_one_product():
    """Members share one batched product a layer, not a program each."""
    config = MINI.head
    variables = jax.eval_shape(LabelHead(config).init, jax.random.key(0), jnp.zeros((1, 96)))
    traced = jax.make_jaxpr(LabelHead(config).apply)(variables, jnp.zeros((5, 96)))
    assert len(list(products(traced.jaxpr))) == len(config.hidden_dims) + 1


def test_seeds_train_as_one_base_product_and_thin_ones_the_right_way_round():
    """Of a LoRA4 run: the base's kernels see the rows of all seeds, and no gradient of A is made wide first.

    Turned round, as x^T g, the product for the gradient of A takes six times as long on a CPU.
    """
    config, rows, seeds = PAPER, 60, 3
    frozen = {"mlp2": jax.eval_shape(LabelHead(config.head).init, jax.random.key(0), jnp.zeros((1, 768)))}
    factors = jax.eval_shape(
        lambda tree: lora.init_adapters(jax.random.key(0), tree, {"lora4": config.lora4}),
        {"mlp2": frozen["mlp2"]["params"]},
    )
    many = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype), factors)
    own = {
        "labelled": {"mlp2": jax.ShapeDtypeStruct((seeds, rows, 768), jnp.float32)},
        "rows": jax.ShapeDtypeStruct((seeds, rows), jnp.int32),
        "y": {"mlp2": jax.ShapeDtypeStruct((seeds, rows), jnp.float32)},
        "weight": jax.ShapeDtypeStruct((seeds, rows), jnp.float32),
    }
    problem = Problem(
        config=config, dtype="float32", entry=Entry("features"), heads=("mlp2",), batch=None,
        objective=Objective(),
    )  # fmt: skip
    optimizer = make_optimizer({"lora4": GroupSchedule(learning_rate=1e-3)}, steps=4)
    program = loop._program(objectives.make_loss(problem), optimizer, 4, 2)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    base = {
        "params": {"mlp2": frozen["mlp2"]["params"]},
        "batch_stats": {"mlp2": frozen["mlp2"]["batch_stats"]},
        "stats": {"mlp2": {"feature_mean": jnp.zeros(768), "feature_std": jnp.ones(768)}},
        "column": jnp.int32(0),
    }
    text = program.lower(base, many, {}, own, keys).compile().as_text()
    made = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
    for width in (1024, 512):
        assert f"{seeds * rows},{width}" in made
        assert f"{seeds},{rows},{width}" in made  # the low-rank term
        assert f"{seeds},{config.lora4.rank},{width}" in made
        assert f"{seeds},{width},{config.lora4.rank}" not in made
