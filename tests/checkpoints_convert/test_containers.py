"""Malicious zip files, and tensors with false descriptions."""

import pickle
import zipfile

import pytest

from checkpoints_convert.convert import open_source
from checkpoints_convert.torch_file import open_torch_file
from specjax.errors import SpecjaxError
from tests.checkpoints_convert.smallest import members, rewrite, small_model


def tensor_file(path, *, count=6, offset=0, shape=(2, 3), strides=(3, 1), key="0", kind="Float"):
    """Write a file of one tensor with an arbitrary description."""
    numbers = lambda values: b"(" + b"".join(pickle.dumps(v, 0)[:-1] for v in values) + b"t"  # noqa: E731
    storage = (
        b"(S'storage'\nctorch\n%sStorage\n%sS'cpu'\n" % (kind.encode(), pickle.dumps(key, 0)[:-1])
        + pickle.dumps(count, 0)[:-1]
        + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + pickle.dumps(offset, 0)[:-1]
        + numbers(shape)
        + numbers(strides)
        + b"\x89}tR"
    )
    return rewrite(path, {"a/data.pkl": b"\x80\x02}S'w'\n" + tensor + b"s.", "a/data/0": bytes(24)})


@pytest.mark.parametrize(
    "claims",
    [
        {"count": 7},
        {"count": 5},
        {"count": 1 << 60},
        {"count": -6},
        {"count": True},
        {"count": "6"},
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 62},
        {"shape": (3, 3)},
        {"shape": (-2, 3)},
        {"shape": (1 << 40, 1 << 40), "strides": (0, 0)},
        {"shape": (1 << 30,), "strides": (0,)},
        {"shape": (2, 3, 1)},
        {"shape": (1,) * 40, "strides": (1,) * 40},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"strides": (3, 1 << 60)},
        {"strides": (3.0, 1)},
        {"kind": "Quantised"},
        {"kind": "Double"},
    ],
    ids=str,
)
def test_false_descriptions_of_tensors_are_refused(tmp_path, claims):
    good = open_torch_file(tensor_file(tmp_path / "good.pt")).state_dict()["w"]
    assert good.array().shape == (2, 3)
    with pytest.raises(SpecjaxError):
        open_torch_file(tensor_file(tmp_path / "bad.pt", **claims)).state_dict()


@pytest.mark.parametrize("name", ["a/../../etc/x", "/a/x", "a//x", "a/./x", "a\\..\\x", "x", "b/x", "a/"])
def test_member_names_outside_the_folder_are_refused(tmp_path, name):
    content = members(small_model(tmp_path / "a.ckpt"))
    content = {key.replace("archive/", "a/"): data for key, data in content.items()}
    with pytest.raises(SpecjaxError):
        open_torch_file(rewrite(tmp_path / "b.ckpt", {**content, name: b"x"}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_pytorch_does_not_write_are_refused(tmp_path):
    content = members(small_model(tmp_path / "a.ckpt"))
    bomb = {**content, "archive/data/0": bytes(50 << 20)}
    rewrite(tmp_path / "compressed.ckpt", bomb, zipfile.ZIP_DEFLATED)
    rewrite(tmp_path / "twice.ckpt", [*content.items(), ("archive/data/0", b"\0" * 8)])
    rewrite(tmp_path / "lost.ckpt", {k: v for k, v in content.items() if k != "archive/data/3"})
    rewrite(tmp_path / "pickle.ckpt", {k: v for k, v in content.items() if k != "archive/data.pkl"})
    (tmp_path / "nothing.ckpt").write_bytes(b"PK\x05\x06" + bytes(18))
    for name in ("compressed", "twice", "lost", "pickle", "nothing"):
        with pytest.raises(SpecjaxError):
            open_source(tmp_path / f"{name}.ckpt")


def overlapping(path):
    """Write a file with two directory entries for the same bytes, like a zip bomb."""
    data = bytearray(small_model(path).read_bytes())
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)


FALSE_ENTRIES = {
    "encrypted": (8, 1, 0),  # offset in a directory entry, and the bits to flip in its two bytes
    "another method": (10, 8, 0),
    "a size beyond the file": (24, 0xFF, 0x7F),
    "a compressed size of its own": (20, 1, 0),
    "a place beyond the file": (42, 0xFF, 0x7F),
    "another checksum": (16, 1, 2),
}


@pytest.mark.parametrize("entry", FALSE_ENTRIES)
def test_false_directory_entries_are_refused(tmp_path, entry):
    data = bytearray(small_model(tmp_path / "a.ckpt").read_bytes())
    offset, low, high = FALSE_ENTRIES[entry]
    start = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4) + offset
    data[start : start + 2] = bytes([data[start] ^ low, data[start + 1] ^ high])
    (tmp_path / "b.ckpt").write_bytes(data)
    with pytest.raises(SpecjaxError):
        read_all(tmp_path / "b.ckpt")


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "", "0/../1", "\x00"])
def test_storages_outside_the_archive_are_refused(tmp_path, key):
    path = tensor_file(tmp_path / "bad.pt", key=key)
    with pytest.raises(SpecjaxError):
        open_torch_file(path).state_dict()


def read_all(path):
    return [tensor.array() for tensor in open_torch_file(path).state_dict().values()]


def test_overlapping_members_are_refused(tmp_path):
    overlapping(tmp_path / "a.ckpt")
    with pytest.raises(SpecjaxError):
        open_source(tmp_path / "a.ckpt")
