import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax.checkpoints import TrainingStates
from specjax.errors import ModelError
from tests.checkpoints.arrays import assert_same


def training_state(value):
    params = {"w": jnp.full((3, 2), value), "b": {"c": jnp.zeros(2)}}
    optimizer = optax.multi_transform(
        {"a": optax.adamw(optax.linear_schedule(1.0, 0.0, 10)), "b": optax.set_to_zero()},
        {"w": "a", "b": "b"},
    )
    return {"params": params, "opt_state": optimizer.init(params), "key": jax.random.key(7)}


def test_the_newest_training_state_is_restored(tmp_path):
    folder = tmp_path / "state"
    with TrainingStates(folder) as states:
        assert states.latest_step() is None
        for step in (10, 20, 30):
            states.save(step, training_state(float(step)), {"next": step})
    with TrainingStates(folder) as states:
        state, position, step = states.restore(training_state(0.0))
        assert step == states.latest_step() == 30
    assert position == {"next": 30}
    assert_same(state, training_state(30.0))
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["20", "30"]


def test_buffers_may_be_reused_while_a_state_is_written(tmp_path):
    """The next step donates the state that is being written in the background."""
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    value = jnp.zeros(2_000_000)
    with TrainingStates(tmp_path) as states:
        for step in range(1, 4):
            states.save(step, {"w": value})
            value = overwrite(value)
        states.wait()
        restored = states.restore({"w": value}).state
    np.testing.assert_array_equal(restored["w"], 2)


def test_a_training_state_of_another_structure_is_refused_in_one_line(tmp_path):
    with TrainingStates(tmp_path / "s") as states:
        with pytest.raises(ModelError, match="no training state"):
            states.restore({})
        states.save(1, {"w": jnp.zeros(3)})
        states.wait()
        for like in ({"w": jnp.zeros(4)}, {"v": jnp.zeros(3)}):
            with pytest.raises(ModelError, match="does not fit") as caught:
                states.restore(like)
            assert "\n" not in str(caught.value)
