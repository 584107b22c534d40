import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.devices import mesh_for
from specjax.errors import ModelError
from specjax.pretrain.config import StageConfig
from specjax.pretrain.loop import chunk_program, run_stage

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = StageConfig(steps=12, batch=4, learning_rate=0.1, weight_decay=0.1, chunk=3)
KEY = jax.random.key(2)


def loss(params, stats, data, key):
    """Least squares on a random batch; the statistics count the steps."""
    rows = jax.random.randint(key, (CONFIG.batch,), 0, len(data["x"]))
    error = data["x"][rows] @ params["w"] - data["y"][rows]
    return (error**2).mean(), ({"count": stats["count"] + 1}, {"largest": jnp.abs(error).max()})


def run(config=CONFIG, say=lambda text: None, **options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    data = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(x @ np.arange(5), jnp.float32)}
    start = {"w": jnp.zeros(5)}
    return run_stage(
        "toy", loss, config, params=start, batch_stats={"count": jnp.zeros(())}, data=data, key=KEY, say=say,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return run()


def stop_after(step):
    """Interrupt the run as a user would, after the report of a chunk."""

    def say(text):
        if f" {step}/" in text:
            raise KeyboardInterrupt

    return say


def test_runs_all_steps_and_learns(whole):
    params, stats = whole
    assert stats["count"] == CONFIG.steps
    params = run(dataclasses.replace(CONFIG, steps=300, chunk=100, weight_decay=0.0))[0]
    np.testing.assert_allclose(params["w"], np.arange(5), atol=0.05)  # noiseless, at a rate decayed to zero


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_the_result_does_not_depend_on_the_chunk_size(whole, chunk):
    """Random numbers and schedule depend on the step, not on the chunk."""
    # Scans of different lengths are different programs: float32 rounding.
    chex.assert_trees_all_close(run(dataclasses.replace(CONFIG, chunk=chunk)), whole, rtol=1e-5)


@pytest.mark.parametrize("step", [3, 9])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, say=stop_after(step))
    said = []
    resumed = run(folder=tmp_path, say=said.append)
    assert said[0] == f"toy: resuming after step {step}"
    assert len(said) == 1 + (CONFIG.steps - step) // CONFIG.chunk
    chex.assert_trees_all_equal(resumed, whole)


def test_a_finished_stage_is_not_run_again(whole, tmp_path):
    run(folder=tmp_path)
    said = []
    chex.assert_trees_all_equal(run(folder=tmp_path, say=said.append), whole)
    assert said == ["toy: resuming after step 12"]


def test_a_state_of_another_model_is_refused(tmp_path):
    run(folder=tmp_path)
    data = {"x": jnp.zeros((4, 3)), "y": jnp.zeros(4)}
    with pytest.raises(ModelError, match="does not fit") as caught:
        run_stage(
            "toy", loss, CONFIG, params={"w": jnp.zeros(3), "b": jnp.zeros(1)}, data=data, key=KEY,
            batch_stats={"count": jnp.zeros(())}, folder=tmp_path, say=lambda text: None,
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_reports_and_validates_each_chunk():
    said, seen = [], []

    def validate(params, stats):
        seen.append(int(stats["count"]))
        return {"held-out": float(params["w"].sum())}

    run(dataclasses.replace(CONFIG, steps=7), said.append, validate=validate)
    assert seen == [3, 6, 7]
    assert [line.split("  ")[0] for line in said] == ["toy 3/7", "toy 6/7", "toy 7/7"]
    for word in ("loss", "largest", "held-out"):
        assert all(word in line for line in said)


def test_the_state_is_donated():
    """The new state reuses the memory of all arguments but the data and the step numbers."""
    optimizer = CONFIG.optimizer()
    params = {"w": jnp.zeros(5)}
    state = {"params": params, "batch_stats": {"count": jnp.zeros(())}, "optimizer": optimizer.init(params)}
    data = {"x": jnp.zeros((30, 5)), "y": jnp.zeros(30)}
    program = chunk_program(loss, optimizer, KEY, mesh_for(CONFIG.batch))
    memory = program.lower(state, data, np.arange(3)).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_the_starting_state_is_not_donated():
    params, stats = {"w": jnp.ones(5)}, {"count": jnp.zeros(())}
    data = {"x": jnp.ones((30, 5)), "y": jnp.ones(30)}
    run_stage(
        "toy", loss, CONFIG, params=params, batch_stats=stats, data=data, key=KEY, say=lambda text: None
    )
    np.testing.assert_array_equal(params["w"], 1)  # a donated buffer cannot be read
    np.testing.assert_array_equal(stats["count"], 0)


def test_the_schedule_warms_up_and_decays_to_zero():
    config = StageConfig(steps=40, batch=1, learning_rate=0.5, weight_decay=0.0, warmup=0.25)
    optimizer = config.optimizer()
    params = jnp.zeros(1)

    def step(state, _):
        updates, state = optimizer.update(jnp.full(1, 0.1), state, params)
        return state, -updates[0]

    _, rates = jax.lax.scan(step, optimizer.init(params), length=40)
    # Under constant gradients the step of Adam is the learning rate.
    expected = np.concatenate([0.5 * np.arange(10) / 10, 0.25 * (1 + np.cos(np.pi * np.arange(30) / 30))])
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)  # float32, and Adam's eps
