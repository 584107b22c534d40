"""What keeps the joint step fast, asked of the compiler: no full gradients, one base for all seeds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flop_counts
from specjax.adapt.configuration import Configuration
from specjax.adapt.tower import Entry, entry_of
from specjax.config import get_preset
from specjax.models.products import FULL
from tests.adapt.programs import shapes_of, training
from tests.models.tiny import precisions

MINI = get_preset("mini")
BATCH, SEEDS = 8, 3


@pytest.fixture(scope="module")
def variables():
    """The variables of the mini model, as shapes."""
    return shapes_of(MINI)


def program(variables, name, seeds=SEEDS, rows=None):
    """The training program of a configuration and the shapes of its arguments."""
    return training(MINI, variables, name, seeds=seeds, batch=BATCH, rows=rows)


def flops(variables, name, seeds=SEEDS):
    run, given = program(variables, name, seeds)
    return run.lower(*given).cost_analysis()["flops"]


def size(tree):
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if leaf.dtype.name[:3] != "key"
    )


@pytest.mark.parametrize("name", ["lora1+lora2", "lora1+lora3+lora4", "full-mlp2"])
def test_no_product_of_a_joint_step_leaves_its_precision_to_the_device(variables, name):
    """Forward and backward; a GPU would round the operands to TF32."""
    run, given = program(variables, name)
    assert precisions(run, *given) == {(FULL, FULL)}


@pytest.mark.parametrize("name", ["lora1+lora2", "lora1+lora3+lora4"])
def test_a_joint_step_makes_no_full_gradients(variables, name):
    """It takes the forward products, as many backward, and thin ones; not the gradients of the weights."""
    joint, full = flops(variables, name), flops(variables, f"full-{Configuration.parse(name).heads[0]}")
    tower = SEEDS * BATCH * flop_counts.lamost_tower(MINI.specformer)
    # The compiler counts the body of the loop over steps once. Norms, softmax and GELU of a narrow model come
    # on top of the products, as in the guard of the embedding.
    assert 1.8 < joint / tower < 2.8
    assert joint < 0.75 * full


def test_the_base_is_not_batched_over_seeds(variables):
    sizes = {}
    for seeds in (1, 4):
        run, given = program(variables, "lora1+lora2", seeds)
        sizes[seeds] = run.lower(*given).compile().memory_analysis().argument_size_in_bytes
        small = size(given[1]) + size(given[3])
        base = size(given[0]["params"]["lamost"]["backbone"]) + size(given[0]["params"]["mlp1"])
        # The keys, the statistics and the spectra that all seeds share come on top of base and factors.
        shared = size(given[2]) + size(given[0]["batch_stats"]) + size(given[0]["stats"])
        assert sizes[seeds] <= 1.01 * (base + small + shared) + 64 * seeds
    per_seed = (sizes[4] - sizes[1]) / 3
    assert per_seed < 0.2 * base


def test_products_with_the_base_see_the_rows_of_all_seeds(variables):
    run, given = program(variables, "lora1+lora2")
    text = run.lower(*given).compile().as_text()
    tower, rows = MINI.specformer, SEEDS * BATCH * MINI.specformer.num_tokens
    made = {tuple(map(int, dims.split(","))) for dims in re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)}
    wide = {np.prod(dims[:-1]) for dims in made if dims[-1] == tower.mlp_dim}
    assert rows in wide
    assert not any(dims[0] == SEEDS and dims[-1] == tower.mlp_dim for dims in made)


def test_the_embedding_below_lora1_is_not_in_the_step(variables):
    """It has run once: the program reads hidden states, and its first product is that of a block."""
    run, given = program(variables, "lora1+lora2")
    assert set(given[2]["labelled"]) == {"hidden"}
    unused = given[0]["params"]["lamost"]["backbone"]["data_embed"]
    lowered = run.lower(*given)
    kept = lowered.compile().memory_analysis().argument_size_in_bytes
    assert kept < size(given[0]["params"]) + size(given[1]) + size(given[2]) + size(given[3])
    assert size(unused)
    assert entry_of(given[1]) == Entry("block", 0)


def test_another_run_of_the_same_shapes_compiles_nothing(variables):
    run, given = program(variables, "lora1+lora2", seeds=2, rows=4)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (given[0], given[1], given[2], given[3])
    )
    for seed in (0, 1):
        run(*zeros, jax.random.split(jax.random.key(seed), 2))
    assert run._cache_size() == 1
    assert program(variables, "lora1+lora2", seeds=2, rows=4)[0] is run  # for the same configuration
