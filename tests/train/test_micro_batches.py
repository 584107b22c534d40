"""A batch in parts: the same gradient, in less memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import batching, lora
from specjax.adapt import objectives
from specjax.adapt.objectives import Objective, Problem
from specjax.adapt.tower import Entry
from specjax.config import get_preset
from specjax.models import SpecFormer
from specjax.train.micro_batches import summed
from tests.models.tiny import TINY, random_system

BATCH, MINI = 8, get_preset("mini")


def lora1_step(config, params, rows):
    """The gradient of LoRA1's loss over two seeds, as a function to trace."""
    problem = Problem(
        config=config, dtype="float32", entry=Entry("tokens"), heads=(), batch=BATCH, rows=rows,
        objective=Objective(label=0.0, masked=1.0),
    )  # fmt: skip
    loss = objectives.make_loss(problem)
    keys = jax.random.split(jax.random.key(1), 2)
    frozen = {"params": {"lamost": {"backbone": params["lamost"]["backbone"]}}}
    factors = jax.vmap(lambda key: lora.init_adapters(key, params, {"lora1": config.lora1}))(keys)
    factors = jax.tree.map(lambda leaf: leaf + 0.02, factors)
    tower = config.specformer
    tokens = np.random.default_rng(0).normal(size=(20, tower.num_tokens, tower.token_dim)).astype(np.float32)
    step = jax.vmap(jax.value_and_grad(loss), in_axes=(0, None, None, None, 0))
    return step, (factors, frozen, {"pool": tokens, "in_pool": np.ones(20, bool)}, {}, keys)


@pytest.fixture(scope="module")
def whole():
    step, given = lora1_step(TINY, random_system()["params"], None)
    return jax.jit(step)(*given)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_gradient_is_that_of_the_whole_batch(whole, rows):
    step, given = lora1_step(TINY, random_system()["params"], rows)
    # float32: the same terms, added in another order
    chex.assert_trees_all_close(jax.jit(step)(*given), whole, rtol=2e-4, atol=1e-6)


def test_a_sum_of_parts_has_the_sum_of_their_gradients():
    """Whatever the parts weigh, and however the sum goes on."""
    parts = jnp.arange(6.0).reshape(3, 2)

    def loss(x, scale, part):
        return scale * jnp.sin(x * part).sum()

    def plain(x):
        return sum(loss(x, 2.0, part) for part in parts) ** 2

    def in_parts(x):
        return summed(loss, x, 2.0, parts) ** 2

    found, expected = (jax.value_and_grad(f)(0.3) for f in (in_parts, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32


def test_parts_take_less_memory_and_no_more_work():
    """At the mini model's sizes, from the compiler."""
    memory, flops = {}, {}
    tower, tokens = MINI.specformer, np.zeros((1, MINI.specformer.num_tokens, MINI.specformer.token_dim))
    shapes = jax.eval_shape(SpecFormer(tower).init, jax.random.key(0), tokens)["params"]
    backbone = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for rows in (BATCH, 2):
        step, given = lora1_step(MINI, {"lamost": {"backbone": backbone}}, rows)
        compiled = jax.jit(step).lower(*given).compile()
        memory[rows] = compiled.memory_analysis().temp_size_in_bytes
        flops[rows] = compiled.cost_analysis()["flops"]
        # Two seeds: what the choice of rows reckons with.
        assert 0.5 < memory[rows] / (2 * rows * batching.training_bytes(MINI)) < 1.2
    assert memory[2] < 0.4 * memory[BATCH]
    # The compiler counts the body of a loop once: it is one of four parts.
    assert flops[2] == pytest.approx(flops[BATCH] / 4, rel=0.1)
