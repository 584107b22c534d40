import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax import lora
from specjax.config import SpecFormerConfig
from specjax.models import LabelHead, SpecFormer
from specjax.train import loop, losses
from specjax.train.loop import fit
from specjax.train.optimizer import GroupSchedule, make_optimizer
from tests.models.tiny import TINY, random_system

SEEDS, STEPS = 4, 12
GROUP = GroupSchedule(learning_rate=1e-2, weight_decay=0.1)
OPTIMIZER = make_optimizer({"lora2": GROUP}, steps=STEPS)
NETWORK = LabelHead(TINY.head, lora=TINY.lora2)


def head_loss(factors, frozen, shared, own, key):
    """Regression on a random half of this seed's stars, so that keys matter."""
    rows = jax.random.choice(key, len(own["x"]), (6,), replace=False)
    variables = {"params": lora.combine(frozen, factors)["mlp1"], "batch_stats": shared}
    predicted = NETWORK.apply(variables, own["x"][rows])
    return losses.label_loss(predicted, own["y"][rows])


@pytest.fixture(scope="module")
def problem():
    system = jax.tree.map(jnp.asarray, random_system())
    frozen = {"mlp1": system["params"]["mlp1"]}
    keys = jax.random.split(jax.random.key(1), SEEDS)
    rng = np.random.default_rng(0)
    return {
        "frozen": frozen,
        "trainable": jax.vmap(lambda key: lora.init_adapters(key, frozen, {"lora2": TINY.lora2}))(keys),
        "shared": system["batch_stats"]["mlp1"],
        "per_seed": {
            "x": jnp.asarray(rng.normal(size=(SEEDS, 12, 24)), jnp.float32),
            "y": jnp.asarray(rng.normal(size=(SEEDS, 12, 2)), jnp.float32),
        },
        "keys": keys,
    }


def snapshot(result, index=-1):
    return jax.tree.map(lambda leaf: leaf[:, index], result.snapshots)


def train(problem, seeds=slice(None), snapshots=3, steps=STEPS):
    part = {
        name: jax.tree.map(lambda leaf: leaf[seeds], problem[name])
        for name in ("trainable", "per_seed", "keys")
    }
    return fit(head_loss, OPTIMIZER, **{**problem, **part}, steps=steps, snapshots=snapshots)


@pytest.fixture(scope="module")
def result(problem):
    return train(problem)


@pytest.mark.parametrize("seed", [0, 2])
def test_a_seed_inside_the_vmap_equals_that_seed_alone(problem, result, seed):
    alone = train(problem, slice(seed, seed + 1))
    # Batched and single matrix products may sum in another order: float32 rounding, carried through 12 steps
    # of Adam, each of which divides by the root of a small second moment.
    inside = jax.tree.map(lambda leaf: leaf[seed : seed + 1], result)
    chex.assert_trees_all_close(alone.snapshots, inside.snapshots, rtol=1e-3, atol=1e-6)
    chex.assert_trees_all_close(alone.loss, inside.loss, rtol=1e-5)


def test_seeds_differ_and_learn(result):
    assert result.loss.shape == (SEEDS, 3)
    assert (result.loss[:, -1] < result.loss[:, 0]).all()
    for leaf in jax.tree.leaves(snapshot(result)):
        assert len(np.unique(np.asarray(leaf).reshape(SEEDS, -1), axis=0)) == SEEDS


def test_equals_a_plain_loop(problem, result):
    """Snapshots are the states after 4, 8 and 12 steps; the loss is the mean over each four."""
    params = jax.tree.map(lambda leaf: leaf[1], problem["trainable"])
    own = jax.tree.map(lambda leaf: leaf[1], problem["per_seed"])
    state = OPTIMIZER.init(params)

    @jax.jit
    def step(params, state, index):
        key = jax.random.fold_in(problem["keys"][1], index)
        value, gradient = jax.value_and_grad(head_loss)(
            params, problem["frozen"], problem["shared"], own, key
        )
        updates, state = OPTIMIZER.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    states, values = [], []
    for index in range(STEPS):
        params, state, value = step(params, state, index)
        states.append(params)
        values.append(value)
    for part in range(3):
        inside = jax.tree.map(lambda leaf: leaf[1], snapshot(result, part))
        # as for a seed alone
        chex.assert_trees_all_close(inside, states[4 * part + 3], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(result.loss[1], np.reshape(values, (3, 4)).mean(1), rtol=1e-5)


def test_the_number_of_snapshots_changes_nothing_but_what_is_kept(problem, result):
    once = train(problem, snapshots=1)
    assert jax.tree.leaves(once.snapshots)[0].shape[:2] == (SEEDS, 1)
    chex.assert_trees_all_close(snapshot(once), snapshot(result), rtol=1e-5, atol=1e-7)  # another program
    np.testing.assert_allclose(once.loss[:, 0], result.loss.mean(1), rtol=1e-5)


@pytest.mark.parametrize(("steps", "snapshots"), [(0, 1), (-4, 2), (12, 5), (3, 4)])
def test_steps_that_cannot_be_cut(problem, steps, snapshots):
    with pytest.raises(ValueError, match="cannot be cut"):
        train(problem, steps=steps, snapshots=snapshots)


@pytest.mark.parametrize("name", ["trainable", "per_seed"])
def test_every_seed_needs_its_own_factors_and_data(problem, name):
    fewer = jax.tree.map(lambda leaf: leaf[:-1], problem[name])
    with pytest.raises(AssertionError):
        train({**problem, name: fewer})


def test_a_second_call_does_not_recompile(problem, result):
    program = loop._program(head_loss, OPTIMIZER, STEPS, 3)
    compiled = program._cache_size()
    other = {**problem, "keys": jax.random.split(jax.random.key(9), SEEDS)}
    assert not np.array_equal(train(other).loss, result.loss)
    assert program._cache_size() == compiled


def test_nothing_crosses_to_the_host(problem, result):
    """The arrays are on the device already, and the loop asks for nothing else."""
    host = random_system()["batch_stats"]["mlp1"]
    with jax.transfer_guard("disallow"):
        again = train(problem)
        jax.block_until_ready(again)
        with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device"):  # the guard is one
            train({**problem, "shared": host})
    chex.assert_trees_all_equal(again, result)


def test_nan_in_one_seed_stays_in_it(problem, result):
    broken = {**problem["per_seed"], "y": problem["per_seed"]["y"].at[1].set(jnp.nan)}
    after = train({**problem, "per_seed": broken})
    assert np.isnan(after.loss[1]).all()
    others = np.array([0, 2, 3])
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda leaf: np.asarray(leaf)[others], one.snapshots) for one in (after, result))
    )


@pytest.fixture(scope="module")
def programs():
    """Masked modelling with LoRA1 and with everything trained, compiled for three seeds, and two tree sizes.

    Wide enough that the products of attention with itself, which no partition saves, are not most of it.
    """
    shape, rank, seeds = SpecFormerConfig(dim=256, num_layers=2, num_heads=4, mlp_dim=1024), TINY.lora1, 3
    tokens = jax.ShapeDtypeStruct((2, 146, 21), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    init = SpecFormer(shape).init
    base = {"lamost": {"backbone": jax.eval_shape(init, jax.random.key(0), tokens)["params"]}}
    small = jax.eval_shape(lambda tree: lora.init_adapters(jax.random.key(0), tree, {"lora1": rank}), base)

    def compiled(frozen, trained, optimizer, network):
        def loss(trained, frozen, tokens, own, key):
            params = lora.combine(frozen, trained)["lamost"]["backbone"]
            hidden = losses.chunk_mask(key, len(tokens), shape)
            given = jnp.where(hidden[..., None], 0, tokens)
            predicted = network.apply({"params": params}, given, method="predict_tokens")
            return losses.masked_modelling(predicted, tokens, hidden)

        program = loop._program(loss, optimizer, 4, 2)
        many = jax.tree.map(lambda s: jax.ShapeDtypeStruct((seeds, *s.shape), s.dtype), trained)
        return program.lower(frozen, many, tokens, {}, keys).compile()

    part = compiled(base, small, make_optimizer({"lora1": GROUP}, steps=4), SpecFormer(shape, lora=rank))
    whole = compiled({}, base, optax.adamw(1e-3), SpecFormer(shape))
    sizes = lora.count_parameters(base), seeds * lora.count_parameters(small), tokens.size, 2 * seeds
    return part, whole, sizes


def test_a_lora_step_costs_under_seven_tenths_of_a_full_step(programs):
    part, whole = (program.cost_analysis()["flops"] for program in programs[:2])
    assert 0.4 < part / whole < 0.70  # forward and the gradient of the activations remain, above a third


def test_seeds_share_the_base(programs):
    """Arguments are one base, a small tree a seed, the tokens, and two words of each seed's key."""
    part, whole, sizes = programs
    # The head's bias moves no gradient of the factors, and unused rows of a table may be dropped.
    assert part.memory_analysis().argument_size_in_bytes == pytest.approx(4 * sum(sizes), rel=1e-3)
    assert whole.memory_analysis().argument_size_in_bytes > 4 * 2.9 * sizes[0]  # all three copies


def test_states_are_kept_for_small_trees_only(programs):
    """The result is snapshots of the factors and the losses; nothing of the base's size is returned."""
    part, _, sizes = programs
    # two snapshots; and 2 losses a seed and the tuple's own pointers
    assert part.memory_analysis().output_size_in_bytes == pytest.approx(4 * 2 * sizes[1], rel=2e-2)
