"""Models and adapters on the hub, through a local server with its interface."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from specjax import checkpoints
from specjax.checkpoints.hub import HubAddress, check_repository, hub_cache
from specjax.errors import ConfigError, DownloadError, ModelError
from tests.checkpoints.arrays import CONFIG, assert_same, some_arrays
from tests.services.hub_server import COMMIT, NOWHERE, running_hub, use

pytest.importorskip("huggingface_hub")

WEIGHTS = "weights.safetensors"


def files_of(folder, prefix=""):
    return {prefix + path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        yield use(server, monkeypatch, tmp_path)


@pytest.fixture
def shared(hub, saved):
    """The hub with a model as someone/model."""
    hub.add(files_of(saved), "someone/model")
    return hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", ("a/b", None, "")),
        ("hf://a-1/b.c_d/", ("a-1/b.c_d", None, "")),
        ("hf://a/b@v1.0", ("a/b", "v1.0", "")),
        ("hf://a/b@refs%2Fpr%2F1/x/y+z", ("a/b", "refs/pr/1", "x/y+z")),
        (Path("hf://a/b@v1/x"), ("a/b", "v1", "x")),  # pathlib drops a slash
    ],
)
def test_addresses(text, expected):
    address = HubAddress.parse(text)
    assert (address.repository, address.revision, address.folder) == expected
    assert HubAddress.parse(str(address)) == address


@pytest.mark.parametrize("text", ["runs/a", "/models/hf", "C:/x", "mini", Path("a/hf:/b")])
def test_paths_are_no_addresses(text):
    assert HubAddress.parse(text) is None


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf://", "hf://a", "hf://a/b@", "hf://a/b/../c", "hf://a/b@v1@v2", "hf:///a/b", "hf://a/b?x=1"],
)
def test_other_forms_are_refused(text):
    with pytest.raises(ConfigError, match="hf://OWNER/NAME"):
        HubAddress.parse(text)


@pytest.mark.parametrize("name", ["a", "a/b/c", "/a/b", "../b", "a/.."])
def test_names_of_repositories(name):
    assert check_repository("hf://a/b") == "a/b"
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        check_repository(name)


def test_a_model_is_fetched_once_and_then_used_without_a_network(shared, saved, monkeypatch):
    here = checkpoints.load_model(saved)
    for address in ("hf://someone/model", f"hf://someone/model@{COMMIT}", Path("hf://someone/model")):
        there = checkpoints.load_model(address)
        assert there.digest == here.digest
        assert_same(there.arrays, jax.tree.map(np.asarray, some_arrays()))
    assert sum(command == "GET" and path.endswith(WEIGHTS) for command, path in shared.asked) == 1
    assert not any("README" in path for _, path in shared.asked)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert checkpoints.load_model("hf://someone/model").digest == here.digest
    with pytest.raises(DownloadError, match=r"was not fetched before: there is no connection") as caught:
        checkpoints.load_model("hf://someone/other")
    assert "\n" not in str(caught.value)


def test_revisions_are_told_apart(shared, saved, tmp_path):
    first = checkpoints.load_model("hf://someone/model")
    digest = checkpoints.save_model(tmp_path / "new", config=CONFIG, arrays=some_arrays(1))
    shared.add(files_of(tmp_path / "new"), "someone/model")
    assert checkpoints.load_model("hf://someone/model").digest == digest
    assert checkpoints.load_model(f"hf://someone/model@{COMMIT}").digest == first.digest


def test_adapters_lie_in_folders_of_a_repository(hub, tmp_path):
    checkpoints.save_adapter(tmp_path / "adapter", config={"label": "fe_h"}, arrays={}, base="1234")
    hub.add(files_of(tmp_path / "adapter", "adapters/miles/lora1+lora2/"), "someone/run")
    stored = checkpoints.load_adapter("hf://someone/run/adapters/miles/lora1+lora2", base="1234")
    assert (stored.config, stored.base) == ({"label": "fe_h"}, "1234")
    with pytest.raises(ModelError, match="another base model"):
        checkpoints.load_adapter("hf://someone/run/adapters/miles/lora1+lora2", base="5678")
    with pytest.raises(ModelError, match="is a specjax-adapter"):
        checkpoints.load_model("hf://someone/run/adapters/miles/lora1+lora2")
    with pytest.raises(DownloadError, match=r"such as hf://someone/run/adapters/miles/lora1\+lora2"):
        checkpoints.load_adapter("hf://someone/run")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://someone/nothing", "no such repository"),
        ("hf://someone/model@v9", "no such revision"),
        ("hf://someone/words", r"not a specjax folder: it has no manifest\.json"),
        ("hf://someone/model/below", r"not a specjax folder: it has no manifest\.json"),
    ],
)
def test_what_is_not_there_is_one_line(shared, address, message):
    shared.add({"README.md": b"words"}, "someone/words")
    with pytest.raises(DownloadError, match=message) as caught:
        checkpoints.load_model(address)
    assert "\n" not in str(caught.value)
    assert address in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "manifest.json"])
def test_a_file_that_differs_from_the_digests_is_refused(shared, saved, name):
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    shared.served[name] = bytes(data)
    with pytest.raises(ModelError, match=r"hf://someone/model: .*" + name):
        checkpoints.load_model("hf://someone/model")
    shared.served.clear()  # the hub is repaired, and the cache still holds the damaged file
    checkpoints.load_model("hf://someone/model")


def test_a_damaged_copy_in_the_cache_is_fetched_again(shared, monkeypatch):
    checkpoints.load_model("hf://someone/model")
    (path,) = hub_cache().rglob(WEIGHTS)
    path.resolve().chmod(0o644)
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    checkpoints.load_model("hf://someone/model")
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(ModelError, match=r"is damaged.*cannot fetch"):
        checkpoints.load_model("hf://someone/model")


def test_a_missing_hub_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"pip install 'specjax\[hub\]'"):
        checkpoints.load_model("hf://someone/model")
