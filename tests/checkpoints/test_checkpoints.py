import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from specjax import atomic, checkpoints
from specjax.checkpoints import tensor_file
from specjax.errors import ModelError, SpecjaxError

CONFIG = {"name": "mini", "specformer": {"embed_dim": 8, "statistics": ["mean", "std"]}, "decoder": None}


def some_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "lamost": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)},
            "scale": jnp.float32(2.0),
        },
        "batch_stats": {},
        "fill": {"mean": rng.normal(size=5), "count": np.arange(3)},
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    checkpoints.save_model(folder, config=CONFIG, arrays=some_arrays())
    return folder


names = st.text("abcdefgh_0123", min_size=1, max_size=4)
trees = st.recursive(
    st.just(None), lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(trees)
def test_unflatten_undoes_flatten(tree):
    filled = jax.tree.map(lambda _: 1, tree, is_leaf=lambda x: x is None)
    assert checkpoints.unflatten(checkpoints.flatten(filled)) == filled


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_keys_that_cannot_name_a_tensor_are_refused(key):
    with pytest.raises(ValueError, match="key"):
        list(checkpoints.flatten({"params": {key: 1}}))


def test_round_trip_is_exact(saved):
    stored = checkpoints.load_model(saved)
    assert stored.config == CONFIG
    assert stored.base is None
    assert_same(stored.arrays, jax.tree.map(np.asarray, some_arrays()))
    assert {p.name for p in saved.iterdir()} == {"weights.safetensors", "config.json", "manifest.json"}


def test_the_digest_follows_the_content(saved, tmp_path):
    digest = checkpoints.load_model(saved).digest
    assert checkpoints.save_model(tmp_path / "again", config=CONFIG, arrays=some_arrays()) == digest
    other = {**CONFIG, "name": "other"}
    assert checkpoints.save_model(tmp_path / "config", config=other, arrays=some_arrays()) != digest
    assert checkpoints.save_model(tmp_path / "arrays", config=CONFIG, arrays=some_arrays(1)) != digest


def test_every_type_and_layout_comes_back_as_it_was(tmp_path):
    """Written one at a time here, read by the safetensors library."""
    values = np.arange(24).reshape(2, 3, 4)
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()
    arrays = {
        "kinds": {kind: jnp.dtype(kind).type(1) * values.astype(jnp.dtype(kind)) for kind in kinds},
        "views": {
            "transposed": values.T,
            "strided": values[:, ::2],
            "broadcast": np.broadcast_to(1.5, (3, 2)),
        },
        "small": {"scalar": np.float32(2), "empty": np.zeros((0, 3)), "one": np.int8([7])},
    }
    checkpoints.save_model(tmp_path / "m", config={}, arrays=arrays)
    assert_same(checkpoints.load_model(tmp_path / "m").arrays, arrays)
    with pytest.raises(ModelError, match=r"c has the type complex64"):
        checkpoints.save_model(tmp_path / "c", config={}, arrays={"c": np.zeros(2, np.complex64)})


def test_half_storage_rounds_only_what_it_names(tmp_path):
    arrays = some_arrays()
    checkpoints.save_model(tmp_path / "half", config=CONFIG, arrays=arrays, half=["params/lamost/*"])
    stored = checkpoints.load_model(tmp_path / "half").arrays
    kernel = np.asarray(arrays["params"]["lamost"]["kernel"])
    assert stored["params"]["lamost"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(stored["params"]["lamost"]["kernel"], kernel.astype(np.float16))
    np.testing.assert_array_equal(stored["fill"]["mean"], arrays["fill"]["mean"])
    on_disk = load_file(tmp_path / "half" / "weights.safetensors")
    assert on_disk["params/lamost/kernel"].dtype == np.float16
    assert on_disk["params/scale"].dtype == np.float32


def test_half_storage_refuses_what_float16_cannot_hold(tmp_path):
    with pytest.raises(ModelError, match="params/w"):
        checkpoints.save_model(
            tmp_path / "m", config={}, arrays={"params": {"w": np.float32([7e4])}}, half=["*"]
        )
    assert not any(tmp_path.iterdir())


def test_a_flipped_bit_names_its_tensor(saved):
    weights = saved / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    kernel = load_file(weights)["params/lamost/kernel"].tobytes()
    data[data.index(kernel) + 5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="tensor params/lamost/kernel"):
        checkpoints.load_model(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize("spoil", ["truncate", "remove", "garbage", "empty"])
def test_any_spoiled_file_is_named(saved, name, spoil):
    path = saved / name
    data = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": data[:-7], "garbage": b"\x00{" + data, "empty": b""}[spoil])
    with pytest.raises(ModelError, match=name) as caught:
        checkpoints.load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_tensors_that_differ_from_the_manifest_are_named(saved, change):
    tensors = load_file(saved / "weights.safetensors")
    name = "params/lamost/bias"
    if change == "missing":
        del tensors[name]
    else:
        name = "params/more" if change == "extra" else name
        tensors[name] = np.zeros(4, np.float32) if change != "dtype" else np.zeros(3, np.float64)
    save_file(tensors, saved / "weights.safetensors")
    with pytest.raises(ModelError, match=name):
        checkpoints.load_model(saved)


def test_a_damaged_manifest_is_noticed(saved):
    path = saved / "manifest.json"
    text = path.read_text()
    for old, new in {
        '"stored"': '"stoued"',
        '"shape"': '"rhape"',
        '"sha256"': '"sha257"',
        '"tensors"': '"t"',
    }.items():
        path.write_text(text.replace(old, new))
        with pytest.raises(ModelError, match="manifest"):
            checkpoints.load_model(saved)


def test_an_edited_manifest_is_noticed(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["tensors"]["params/lamost/kernel"]["dtype"] = "float64"
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="digest"):
        checkpoints.load_model(saved)


def test_other_kinds_versions_and_places_are_refused(saved, tmp_path):
    with pytest.raises(ModelError, match="not a specjax-adapter"):
        checkpoints.load_adapter(saved)
    with pytest.raises(ModelError, match="no model folder"):
        checkpoints.load_model(tmp_path / "nowhere")
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        checkpoints.load_model(saved)


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(SpecjaxError, match="left as it is"):
        checkpoints.save_model(tmp_path, config={}, arrays={})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_adapters_know_their_base(tmp_path, saved):
    base = checkpoints.load_model(saved).digest
    arrays = {"lamost": {"lora_a": np.ones((4, 2), np.float32)}}
    checkpoints.save_adapter(
        tmp_path / "adapter", config={"configuration": "lora4"}, arrays=arrays, base=base
    )
    stored = checkpoints.load_adapter(tmp_path / "adapter", base=base)
    assert stored.base == base
    assert_same(stored.arrays, arrays)
    with pytest.raises(ModelError, match="another base model"):
        checkpoints.load_adapter(tmp_path / "adapter", base="0" * 64)


def test_a_failed_write_leaves_the_old_model(saved, monkeypatch):
    monkeypatch.setattr(
        checkpoints.folders, "write_tensors", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save_model(saved, config={}, arrays=some_arrays(1))
    assert checkpoints.load_model(saved).config == CONFIG
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_any_two_renames_leaves_old_or_new(saved, renames):
    program = f"""
    import os, signal
    from specjax import checkpoints
    rename, left = os.rename, [{renames}]
    def killing(a, b):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        rename(a, b)
    os.rename = killing
    checkpoints.save_model({str(saved)!r}, config={{"name": "new"}}, arrays={{"params": {{}}}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ)
    assert done.returncode == (0 if renames == 2 else -signal.SIGKILL)
    assert checkpoints.load_model(saved).config == ({"name": "new"} if renames == 2 else CONFIG)
    # The next save works and cleans up behind the killed one's set-aside folder.
    checkpoints.save_model(saved, config={"name": "next"}, arrays={})
    assert checkpoints.load_model(saved).config == {"name": "next"}
    assert not atomic.previous_folder(saved).exists()


def training_state(value):
    params = {"w": jnp.full((3, 2), value), "b": {"c": jnp.zeros(2)}}
    optimizer = optax.multi_transform(
        {"a": optax.adamw(optax.linear_schedule(1.0, 0.0, 10)), "b": optax.set_to_zero()},
        {"w": "a", "b": "b"},
    )
    return {"params": params, "opt_state": optimizer.init(params), "key": jax.random.key(7)}


def test_training_state_resumes_where_it_was(tmp_path):
    folder = tmp_path / "state"
    assert checkpoints.latest_step(folder) is None
    for step in (10, 20, 30):
        checkpoints.save_training_state(folder, training_state(float(step)), step)
    state, step = checkpoints.restore_training_state(folder, training_state(0.0))
    assert step == checkpoints.latest_step(folder) == 30
    expected = training_state(30.0)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert jax.random.key_data(state.pop("key")).tolist() == jax.random.key_data(expected.pop("key")).tolist()
    assert_same(state, expected)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["20", "30"]


def test_training_state_that_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(ModelError, match="no training state"):
        checkpoints.restore_training_state(tmp_path, {})
    checkpoints.save_training_state(tmp_path / "s", {"w": jnp.zeros(3)}, 1)
    for like in ({"w": jnp.zeros(4)}, {"v": jnp.zeros(3)}):
        with pytest.raises(ModelError, match="does not fit") as caught:
            checkpoints.restore_training_state(tmp_path / "s", like)
        assert "\n" not in str(caught.value)


class FullDisk(io.RawIOBase):
    """Takes the first write and no other."""

    def __init__(self):
        self.writes = 0

    def write(self, data):
        self.writes += 1
        if self.writes > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


def test_a_disk_that_fills_up_is_said_though_threads_write(saved, monkeypatch):
    opened = tensor_file._HashedFile.__init__

    def on_a_full_disk(file, path):
        opened(file, path)
        file._file.close()
        file._file = FullDisk()

    monkeypatch.setattr(tensor_file._HashedFile, "__init__", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_model(saved, config={}, arrays=some_arrays(1))
    assert checkpoints.load_model(saved).config == CONFIG
