import jax
import jax.numpy as jnp
import optax
import pytest

from specjax import checkpoints
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
    assert checkpoints.latest_step(folder) is None
    for step in (10, 20, 30):
        checkpoints.save_training_state(folder, training_state(float(step)), step)
    state, step = checkpoints.restore_training_state(folder, training_state(0.0))
    assert step == checkpoints.latest_step(folder) == 30
    expected = training_state(30.0)
    assert_same(state, expected)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["20", "30"]


def test_a_training_state_of_another_structure_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="no training state"):
        checkpoints.restore_training_state(tmp_path, {})
    checkpoints.save_training_state(tmp_path / "s", {"w": jnp.zeros(3)}, 1)
    for like in ({"w": jnp.zeros(4)}, {"v": jnp.zeros(3)}):
        with pytest.raises(ModelError, match="does not fit") as caught:
            checkpoints.restore_training_state(tmp_path / "s", like)
        assert "\n" not in str(caught.value)
