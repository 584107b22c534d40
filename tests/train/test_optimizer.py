import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from specjax import lora
from specjax.errors import ModelError
from specjax.train.optimizer import GroupSchedule, make_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 20
FAST, SLOW = GroupSchedule(learning_rate=1e-2), GroupSchedule(learning_rate=1e-3, weight_decay=0.5)


LAYERS = {  # one of every group, with and without factors
    "lamost/backbone/blocks_0/attention/q_proj": True,
    "lamost/backbone/data_embed": False,
    "lamost/projection/mlp/encoder": True,
    "gaia_xp/backbone/input_proj": False,
    "lamost_decoder/dense_0": False,
    "mlp1/dense_0": True,
    "mlp2/dense_0": True,
}


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    leaves = {}
    for layer, adapted in LAYERS.items():
        shapes = {"kernel": (5, 4), "bias": (4,)} | ({"lora_a": (5, 2), "lora_b": (2, 4)} if adapted else {})
        for name, shape in shapes.items():
            leaves[f"{layer}/{name}"] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return unflatten_dict(leaves, sep="/")


def gradients(params, scale=1.0):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), params)


def update(schedules, params, grads, count=3, clip=1.0):
    """Parameters and state after so many steps with the same gradients."""
    optimizer = make_optimizer(schedules, steps=STEPS, clip=clip)

    @jax.jit
    def run(params, grads):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=count)[0]

    return run(params, grads)


def by_group(tree):
    groups = jax.tree.leaves(lora.partition_labels(tree))
    leaves = jax.tree.leaves(tree)
    return {
        group: [leaf for leaf, g in zip(leaves, groups, strict=True) if g == group] for group in set(groups)
    }


def test_groups_without_a_schedule_stay_bit_identical(params):
    after, _ = update({"lora1": FAST, "lora4": SLOW}, params, gradients(params))
    before, after = by_group(params), by_group(after)
    assert set(before) == {"lora1", "lora2", "lora3", "lora4", "head", "frozen"}
    for group in ("lora2", "lora3", "head", "frozen"):
        for a, b in zip(before[group], after[group], strict=True):
            np.testing.assert_array_equal(a, b)
    for group in ("lora1", "lora4"):
        for a, b in zip(before[group], after[group], strict=True):
            assert (np.asarray(a) != np.asarray(b)).all()


def test_weight_decay_and_nan_gradients_do_not_reach_frozen_leaves(params):
    labels = lora.partition_labels(params)
    grads = jax.tree.map(lambda g, label: g if label == "lora1" else g * jnp.nan, gradients(params), labels)
    after, _ = update({"lora1": SLOW}, params, grads)
    for name in ("mlp1", "mlp2", "gaia_xp", "lamost_decoder"):
        chex.assert_trees_all_equal(after[name], params[name])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_state_exists_for_scheduled_groups_only(params):
    _, state = update({"lora2": FAST}, params, gradients(params))
    sizes = lora.count_parameters([leaf for leaf in jax.tree.leaves(state) if leaf.ndim])
    assert sizes == 2 * lora.count_parameters(by_group(params)["lora2"])  # the two moments of AdamW
    _, state = update({}, params, gradients(params))
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]


def test_clipping_sees_the_norm_of_the_trained_leaves_only(params):
    """A step of a group does not depend on the gradients of frozen leaves, however large."""
    grads, labels = gradients(params), lora.partition_labels(params)
    larger = jax.tree.map(lambda g, label: g if label == "lora1" else 1e6 * g, grads, labels)
    first, second = (update({"lora1": FAST}, params, g)[0] for g in (grads, larger))
    chex.assert_trees_all_equal(first, second)


def test_clipping_bounds_the_norm(params):
    """Adam forgets the scale of constant gradients, so what clipping did is read off its first moment."""
    _, chosen = lora.split(params, ["lora1"])
    grads = gradients(chosen, scale=100.0)
    for clip in (0.5, 2.0):
        _, state = update({"lora1": FAST}, chosen, grads, count=1, clip=clip)
        moment = state.inner_states["lora1"].inner_state[1][0].mu
        # mu = (1 - 0.9) g after one step; float32
        np.testing.assert_allclose(optax.tree.norm(moment), 0.1 * clip, rtol=1e-5)


def test_each_group_follows_its_own_schedule(params):
    grads, count = gradients(params), 11
    both, _ = update({"lora1": FAST, "lora4": SLOW}, params, grads, count)
    for group, schedule in (("lora1", FAST), ("lora4", SLOW)):
        alone, _ = update({group: schedule}, params, grads, count)
        # One program and the other: the same arithmetic, fused differently.
        chex.assert_trees_all_close(by_group(both)[group], by_group(alone)[group], rtol=1e-6)


def test_the_rate_warms_up_and_decays():
    """With constant gradients Adam's step is the rate itself: m and v are in proportion."""
    factors = {"mlp1": {"dense_0": {"lora_a": jnp.ones((2, 1)), "lora_b": jnp.ones((1, 2))}}}
    schedule = GroupSchedule(learning_rate=0.1, warmup=0.2, final=0.1)
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, factors)
    optimizer = make_optimizer({"lora2": schedule}, steps=STEPS)

    def step(state, _):
        updates, state = optimizer.update(grads, state, factors)
        return state, -updates["mlp1"]["dense_0"]["lora_a"][0, 0]

    _, rates = jax.jit(lambda state: jax.lax.scan(step, state, length=STEPS))(optimizer.init(factors))
    warmup = 4
    decay = 0.5 * (1 + np.cos(np.pi * np.arange(STEPS - warmup) / (STEPS - warmup)))
    expected = np.concatenate([0.1 * np.arange(warmup) / warmup, 0.01 + 0.09 * decay])
    # float32, and Adam's eps of 1e-8 against gradients of 0.1
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(params, steps):
    optimizer = make_optimizer({"lora2": FAST}, steps=steps)
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradients(params), state, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_a_leaf_that_no_rule_covers_is_an_error():
    with pytest.raises(ModelError, match="no rule"):
        make_optimizer({"lora1": FAST}, steps=3).init({"elsewhere": {"kernel": jnp.ones(2)}})
