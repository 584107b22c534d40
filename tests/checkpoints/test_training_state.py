import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax.checkpoints import TrainingStates
from specjax.errors import ModelError
from tests.checkpoints.arrays import assert_same
from tests.damage import flip


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


def test_no_flipped_bit_changes_a_restored_state_without_a_word(tmp_path):
    rng = np.random.default_rng(0)
    state = {"w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32), "key": jax.random.key(1)}
    with TrainingStates(tmp_path) as states:
        states.save(1, state, {"next": 5})
        states.wait()
        files = sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file())
        sizes = np.array([path.stat().st_size for path in files])
        refused = 0
        for bit in rng.integers(0, 8 * sizes.sum(), 200).tolist():
            index = int(np.searchsorted(8 * sizes.cumsum(), bit, side="right"))
            data = files[index].read_bytes()
            files[index].write_bytes(flip(data, bit - 8 * int(sizes[:index].sum())))
            try:
                found = states.restore(state)
            except ModelError as error:
                refused += "\n" not in str(error)
            else:
                assert found.position == {"next": 5}
                assert_same(found.state, state)
            files[index].write_bytes(data)
        assert refused > 150


def test_a_damaged_state_is_named_with_the_one_before_it(tmp_path):
    with TrainingStates(tmp_path) as states:
        for step in (1, 2):
            states.save(step, {"w": jnp.full(3, float(step))})
    damaged = next((tmp_path / "2" / "state").rglob("d/*"))
    damaged.write_bytes(flip(damaged.read_bytes(), 100))
    with TrainingStates(tmp_path) as states:
        with pytest.raises(ModelError, match=r"2 is damaged: state/\S+ differs from its SHA-256; remove it"):
            states.restore({"w": jnp.zeros(3)})
        shutil.rmtree(tmp_path / "2")
    with TrainingStates(tmp_path) as states:
        np.testing.assert_array_equal(states.restore({"w": jnp.zeros(3)}).state["w"], 1)


FULL_DISK = """
import resource, sys
import jax.numpy as jnp
from specjax.checkpoints import TrainingStates
from specjax.errors import TrainingError
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
state = {f"w{k}": jnp.arange(9000) for k in range(60)}  # several files at a time
for last in ("save", "wait", "close"):
    try:
        with TrainingStates(f"{sys.argv[1]}/{last}") as states:
            states.save(1, state)
            if last == "save":
                states.save(2, state)
            if last == "wait":
                states.wait()
    except TrainingError as error:
        print(error)
"""


def test_a_full_disk_is_one_error_of_one_line(tmp_path):
    own = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FULL_DISK, tmp_path]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"the training state {tmp_path / last / '1'} cannot be written: File too large"
        for last in ("save", "wait", "close")
    ]
    assert done.stderr == ""


def test_states_of_earlier_versions_are_restored_with_a_warning(tmp_path, caplog):
    with TrainingStates(tmp_path) as states:
        states.save(1, {"w": jnp.ones(3)})
        states.wait()
        (tmp_path / "1" / "sha256.json").unlink()
        np.testing.assert_array_equal(states.restore({"w": jnp.zeros(3)}).state["w"], 1)
    assert "has no checksums" in caplog.text
