import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from specjax import lora
from specjax.errors import ModelError
from specjax.train.optimizer import GroupSchedule, factor_schedules, make_optimizer

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


def update(schedules, params, grads, count=3):
    """Parameters and state after so many steps with the same gradients."""
    optimizer = make_optimizer(schedules, steps=STEPS)

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
        _, state = update({"lora1": dataclasses.replace(FAST, clip=clip)}, chosen, grads, count=1)
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


def of_label(tree, label):
    return jax.tree.leaves(lora.split(tree, [label])[1])


def test_lora_plus_moves_b_by_a_larger_rate(params):
    """Adam's first steps are the rate, whatever the gradient: B moves `ratio` times as far as A."""
    grads = jax.tree.map(jnp.ones_like, params)
    plain = GroupSchedule(learning_rate=1e-3, clip=1e6)
    after, _ = update(factor_schedules(["lora1"], plain, ratio=16.0), params, grads)
    moved = {
        label: np.abs(np.subtract(of_label(after, label)[0], of_label(params, label)[0])).mean()
        for label in ("lora1/a", "lora1/b")
    }
    np.testing.assert_allclose(moved["lora1/b"], 16 * moved["lora1/a"], rtol=1e-3)  # float32 differences
    chex.assert_trees_all_equal(of_label(after, "lora2"), of_label(params, "lora2"))


def test_lora_fa_keeps_a_and_has_no_state_for_it(params):
    after, state = update(factor_schedules(["lora1"], FAST, freeze_a=True), params, gradients(params))
    chex.assert_trees_all_equal(of_label(after, "lora1/a"), of_label(params, "lora1/a"))
    assert (np.asarray(of_label(after, "lora1/b")[0]) != np.asarray(of_label(params, "lora1/b")[0])).all()
    sizes = lora.count_parameters([leaf for leaf in jax.tree.leaves(state) if leaf.ndim])
    assert sizes == 2 * lora.count_parameters(of_label(params, "lora1/b"))


def test_a_finer_label_goes_before_its_group(params):
    """One half of a group may have a schedule of its own, the other that of the group."""
    grads = gradients(params)
    both, _ = update({"lora1": FAST, "lora1/b": SLOW}, params, grads)
    for label, schedule in (("lora1/a", FAST), ("lora1/b", SLOW)):
        alone, _ = update({label: schedule}, params, grads)
        chex.assert_trees_all_close(of_label(both, label), of_label(alone, label), rtol=1e-6)


def test_a_tower_and_a_head_can_train_whole(params):
    after, _ = update({"lamost/backbone": FAST, "mlp1": SLOW}, params, gradients(params))
    _, trained = lora.split(params, ["lamost/backbone", "mlp1"])
    assert set(trained) == {"lamost", "mlp1"}
    for label in ("lamost/backbone", "mlp1"):
        for a, b in zip(of_label(params, label), of_label(after, label), strict=True):
            assert (np.asarray(a) != np.asarray(b)).any()
    for label in ("lora1", "lora2", "lamost/projection", "gaia_xp/backbone", "mlp2"):
        chex.assert_trees_all_equal(of_label(after, label), of_label(params, label))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(params, steps):
    optimizer = make_optimizer({"lora2": FAST}, steps=steps)
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradients(params), state, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_a_leaf_that_no_rule_covers_is_an_error():
    with pytest.raises(ModelError, match="no rule"):
        make_optimizer({"lora1": FAST}, steps=3).init({"elsewhere": {"kernel": jnp.ones(2)}})
