import json
import os
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from specjax import atomic, checkpoints
from specjax.errors import ModelError, SpecjaxError
from tests.checkpoints.arrays import CONFIG, assert_same, some_arrays


def test_round_trip_is_exact(saved):
    stored = checkpoints.load_model(saved)
    assert stored.config == CONFIG
    assert stored.base is None
    assert_same(stored.arrays, jax.tree.map(np.asarray, some_arrays()))
    assert {p.name for p in saved.iterdir()} == {"weights.safetensors", "config.json", "manifest.json"}


def test_the_digest_depends_on_config_and_arrays(saved, tmp_path):
    digest = checkpoints.load_model(saved).digest
    assert checkpoints.save_model(tmp_path / "again", config=CONFIG, arrays=some_arrays()) == digest
    other = {**CONFIG, "name": "other"}
    assert checkpoints.save_model(tmp_path / "config", config=other, arrays=some_arrays()) != digest
    assert checkpoints.save_model(tmp_path / "arrays", config=CONFIG, arrays=some_arrays(1)) != digest


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage", "empty"])
def test_a_damaged_file_is_named(saved, name, damage):
    path = saved / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": data[:-7], "garbage": b"\x00{" + data, "empty": b""}[damage])
    with pytest.raises(ModelError, match=name) as caught:
        checkpoints.load_model(saved)
    assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_refused(saved):
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


def test_an_edited_manifest_is_refused(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["tensors"]["params/lamost/kernel"]["dtype"] = "float64"
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="digest"):
        checkpoints.load_model(saved)


def test_other_kinds_versions_and_missing_folders_are_refused(saved, tmp_path):
    with pytest.raises(ModelError, match="not a specjax-adapter"):
        checkpoints.load_adapter(saved)
    with pytest.raises(ModelError, match="no model folder"):
        checkpoints.load_model(tmp_path / "nowhere")
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        checkpoints.load_model(saved)


def test_a_folder_with_other_contents_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(SpecjaxError, match="left unchanged"):
        checkpoints.save_model(tmp_path, config={}, arrays={})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_adapter_is_checked_against_its_base_model(tmp_path, saved):
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


def test_a_failed_write_keeps_the_old_model(saved, monkeypatch):
    monkeypatch.setattr(
        checkpoints.folders, "write_tensors", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save_model(saved, config={}, arrays=some_arrays(1))
    assert checkpoints.load_model(saved).config == CONFIG
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_any_rename_leaves_the_old_or_the_new_model(saved, renames):
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
    # The next save works and removes the old folder that the killed one had set aside.
    checkpoints.save_model(saved, config={"name": "next"}, arrays={})
    assert checkpoints.load_model(saved).config == {"name": "next"}
    assert not atomic.previous_folder(saved).exists()
