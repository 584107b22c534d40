"""Files made to do harm, and damaged ones: nothing runs, and what is refused is refused by a SpecjaxError."""

import builtins
import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints_convert.convert import convert, open_source
from checkpoints_convert.torch_file import open_torch_file
from checkpoints_convert.torch_writer import write_torch_file
from checkpoints_convert.unpickle import unpickle
from specjax.checkpoints import load_model
from specjax.errors import SpecjaxError

RAN = "specjax_test_code_from_a_file_ran"


@pytest.fixture(autouse=True)
def _nothing_runs():
    yield
    assert not hasattr(builtins, RAN)
    assert RAN not in os.environ


def harm(call):
    """Pickle opcodes that call setattr(builtins, RAN, 1), if anything is called at all."""
    return {
        "reduce": b"cbuiltins\nsetattr\n(cbuiltins\n__import__\n(S'builtins'\ntRS'%s'\nI1\ntR" % RAN.encode(),
        "exec": b"cbuiltins\nexec\n(S'import builtins; builtins.%s = 1'\ntR" % RAN.encode(),
        "inst": b"(S'import builtins; builtins.%s = 1'\nibuiltins\nexec\n" % RAN.encode(),
        "obj": b"(cbuiltins\nexec\nS'import builtins; builtins.%s = 1'\no" % RAN.encode(),
        "newobj": b"cbuiltins\nexec\n(S'import builtins; builtins.%s = 1'\nt\x81" % RAN.encode(),
        "stack_global": b"\x8c\x08builtins\x8c\x04exec\x93(S'import builtins; builtins.%s = 1'\ntR"
        % RAN.encode(),
        "putenv": b"cos\nputenv\n(S'%s'\nS'1'\ntR" % RAN.encode(),
        "dotted": b"\x8c\x02os\x8c\x0eenviron.update\x93(}S'%s'\nS'1'\nstR" % RAN.encode(),
    }[call]


CALLS = ("reduce", "exec", "inst", "obj", "newobj", "stack_global", "putenv", "dotted")

# What must be refused, whatever stands around it.
MALFORMED = {
    "empty": b"",
    "no_stop": b"N",
    "stop_alone": b".",
    "underflow": b"R.",
    "tuple_underflow": b"\x87.",
    "mark_missing": b"t.",
    "pop_nothing": b"0.",
    "get_unset": b"h\x07.",
    "long_get_unset": b"j\xff\xff\xff\xff.",
    "persistent_text": b"Pid\n.",
    "persistent_harm": b"cos\nsystem\nQ.",
    "unknown_opcode": b"\xff.",
    "buffer": b"\x97.",
    "readonly_buffer": b"N\x98.",
    "bytes_beyond": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "text_beyond": b"X" + struct.pack("<I", (1 << 32) - 1) + b"x.",
    "negative_length": b"T" + struct.pack("<i", -5) + b"x.",
    "long_negative": b"\x8b" + struct.pack("<i", -5) + b".",
    "huge_integer": b"\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + b".",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "bad_float": b"Fabc\n.",
    "bad_utf8": b"X\x02\x00\x00\x00\xff\xff.",
    "bad_string": b"Sabc\n.",
    "append_to_number": b"K\x01N\x61.",
    "set_on_number": b"K\x01NN\x73.",
    "odd_items": b"}(Nu.",
    "args_no_tuple": b"cos\nsystem\nNR.",
    "global_of_numbers": b"K\x01K\x02\x93.",
    "long_name": b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"\x93.",
    "protocol": b"\x80",
    "tensor_of_nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "tensor_of_text": b"ctorch._utils\n_rebuild_tensor_v2\n(S'a'\nI0\n)))\x89NtR.",
    "item_of_environ": b"cos\nenviron\nS'a'\nS'1'\ns.",
    "dict_with_code": b"ccollections\nOrderedDict\n((lp0\ntR.",
}


def no_storage(_):
    raise ValueError("no storages here")


def read(data):
    from checkpoints_convert.torch_file import _CONSTRUCTORS

    return unpickle(data, _CONSTRUCTORS, no_storage)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_in_a_pickle_runs(call):
    read(harm(call) + b".")
    read(b"(" + harm(call) + b"l.")
    read(b"}S'state_dict'\n" + harm(call) + b"s.")
    # A stand-in that is built, appended to, called again, and used as a key or a persistent id.
    read(b"}" + harm(call) + b"Ns.")
    read(harm(call) + b"}S'__setstate__'\n" + harm(call) + b"sb.")
    read(harm(call) + b"(" + harm(call) + b"tR.")
    with pytest.raises(SpecjaxError):
        read(harm(call) + b"Q.")


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pickles_are_refused(name):
    with pytest.raises(SpecjaxError) as caught:
        read(MALFORMED[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 200_000 + b".",  # marks
        b"(lp0\n" + b"h\x00a" * 10 + b".",  # a list that holds itself
        b")" + b"\x85" * 200_000 + b".",  # a tuple in a tuple, deep
        b")" + b"2\x86" * 200 + b".",  # of 2**200 leaves
        b"})" + b"2\x86" * 60 + b"Ns.",  # the same as a key
        b"r\xff\xff\xff\xff.",  # a memo slot at the end of a list of 4 billion
        b"N" + b"r\xff\xff\xff\xff" * 1000 + b".",
        b"\x82\x01.",  # an extension code
        b"\x84\xff\xff\xff\x7f.",
        b"\x95" + struct.pack("<Q", 1 << 60) + b"N.",  # a frame longer than the file
        b"(" + b"N" * 1_000_000 + b"t0N.",
    ],
    ids=lambda data: repr(data[:8]),
)
def test_bombs_cost_nothing(data):
    start = time.process_time()
    with contextlib.suppress(SpecjaxError):
        read(data)
    assert time.process_time() - start < 30  # they would take hours, or all memory


# Containers.


def small_model(path):
    """Write a bare autoencoder of small sizes, by the writer that the parity tests check."""
    from checkpoints_convert.keys import autoencoder
    from specjax.config import XPAutoencoderConfig

    rng = np.random.default_rng(0)
    rows = autoencoder("", "gaia_xp/backbone", XPAutoencoderConfig(hidden_dim=6, latent_dim=4, num_blocks=1))
    state = {row.key: rng.normal(size=row.shape).astype(np.float32) for row in rows}
    write_torch_file(path, {"state_dict": state, "hyper_parameters": {"lr": 0.1}})
    return path


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rewrite(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content if isinstance(content, list) else content.items():
            archive.writestr(name, data)
    return path


def tensor_file(
    path, *, count=6, offset=0, shape=(2, 3), strides=(3, 1), key="0", data=b"\0" * 24, kind="Float"
):
    """Write a file of one tensor whose claims need not be true."""
    numbers = lambda values: b"(" + b"".join(pickle.dumps(v, 0)[:-1] for v in values) + b"t"  # noqa: E731
    storage = (
        b"(S'storage'\nctorch\n%sStorage\nS'0'\nS'cpu'\n" % kind.encode()
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
def test_tensors_that_lie_are_refused(tmp_path, claims):
    good = open_torch_file(tensor_file(tmp_path / "good.pt")).state_dict()["w"]
    assert good.array().shape == (2, 3)
    with pytest.raises(SpecjaxError):
        open_torch_file(tensor_file(tmp_path / "bad.pt", **claims)).state_dict()


@pytest.mark.parametrize("name", ["a/../../etc/x", "/a/x", "a//x", "a/./x", "a\\..\\x", "x", "b/x", "a/"])
def test_names_of_members_that_lead_elsewhere(tmp_path, name):
    content = members(small_model(tmp_path / "a.ckpt"))
    content = {key.replace("archive/", "a/"): data for key, data in content.items()}
    with pytest.raises(SpecjaxError):
        open_torch_file(rewrite(tmp_path / "b.ckpt", {**content, name: b"x"}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_containers_that_pytorch_does_not_write(tmp_path):
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
    """Two entries of the directory that are the same bytes of the file, as a zip bomb has them."""
    data = bytearray(small_model(path).read_bytes())
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)


def test_overlapping_members(tmp_path):
    overlapping(tmp_path / "a.ckpt")
    with pytest.raises(SpecjaxError):
        open_source(tmp_path / "a.ckpt")


# Damage.


def values(path):
    source = open_source(path)
    return {key: np.array(tensor.array()) for key, tensor in source.state.items()}


def check_damaged(path, original, reader):
    """A damaged file gives the same numbers or a SpecjaxError; returns which."""
    try:
        found = reader(path)
    except SpecjaxError:
        return True
    assert found.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(found[name], value)
    return False


def folder_values(path):
    from specjax.checkpoints import flatten

    return {name: leaf for name, leaf in flatten(load_model(path).arrays) if leaf is not None}


def flip_bits(tmp_path, count):
    """Flip single bits all over a PyTorch file and the files of a model folder."""
    path = small_model(tmp_path / "a.ckpt")
    convert(path, tmp_path / "model")
    rng = np.random.default_rng(0)
    targets = [(path, values, path)]
    targets += [(file, folder_values, tmp_path / "model") for file in sorted((tmp_path / "model").iterdir())]
    for file, reader, whole in targets:
        data = file.read_bytes()
        original = reader(whole)
        refused = 0
        for position in rng.integers(0, 8 * len(data), count).tolist():
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << position % 8
            file.write_bytes(damaged)
            refused += check_damaged(whole, original, reader)
        file.write_bytes(data)
        assert refused > count // 4, file  # the others fell on padding, dates and the like


def test_single_bit_flips(tmp_path):
    flip_bits(tmp_path, 60)


@pytest.mark.slow
def test_a_thousand_single_bit_flips(tmp_path):
    flip_bits(tmp_path, 1000)


def test_every_flip_in_a_tensor_is_refused(tmp_path):
    path = small_model(tmp_path / "a.ckpt")
    data = path.read_bytes()
    start = data.index(members(path)["archive/data/1"])
    for bit in range(0, 8 * 24):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(SpecjaxError, match="CRC"):
            values(path)


def truncate(tmp_path, count):
    path = small_model(tmp_path / "a.ckpt")
    data = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(data), count).tolist():
        path.write_bytes(data[:length])
        with pytest.raises(SpecjaxError):
            values(path)


def test_truncations(tmp_path):
    truncate(tmp_path, 40)


@pytest.mark.slow
def test_two_hundred_truncations(tmp_path):
    truncate(tmp_path, 200)


edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy"]),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data, steps):
    for kind, position, new in steps:
        at = position % (len(data) + 1)
        if kind == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(new) :]
        else:
            data = data[:at] + data[at // 2 : at // 2 + 40] + data[at:]
    return data


def check_mutation(folder, steps, inside):
    """Mutate the whole file, or its pickle with a CRC that is right again."""
    path = small_model(folder / "a.ckpt")
    original = values(path)
    if inside:
        content = members(path)
        content["archive/data.pkl"] = mutated(content["archive/data.pkl"], steps)
        rewrite(path, content)
        with contextlib.suppress(SpecjaxError):
            values(path)
    else:
        path.write_bytes(mutated(path.read_bytes(), steps))
        check_damaged(path, original, values)


fixture_is_stateless = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


@settings(max_examples=80, derandomize=True, **fixture_is_stateless)
@given(edits, st.booleans())
def test_mutations(tmp_path, steps, inside):
    check_mutation(tmp_path, steps, inside)


@pytest.mark.slow
@settings(max_examples=10_000, derandomize=True, database=None, **fixture_is_stateless)
@given(edits, st.booleans())
def test_ten_thousand_mutations(tmp_path, steps, inside):
    check_mutation(tmp_path, steps, inside)


# Kills.

CONVERTER = textwrap.dedent(
    """
    import sys
    from checkpoints_convert.convert import convert
    print("ready", flush=True)
    while True:
        for source in sys.argv[2:]:
            convert(source, sys.argv[1])
    """
)


def kill_while_saving(tmp_path, count):
    """Kill a program that overwrites one model with another, over and over, at any moment."""
    first, second = small_model(tmp_path / "a.ckpt"), small_model(tmp_path / "b.ckpt")
    digests = set()
    for source in (first, second):  # they differ in the name of the source, which the record keeps
        convert(source, tmp_path / "model")
        digests.add(load_model(tmp_path / "model").digest)
    rng = np.random.default_rng(0)
    for _ in range(count):
        command = [sys.executable, "-c", CONVERTER, tmp_path / "model", first, second]
        environment = os.environ | {"PYTHONPATH": os.getcwd()}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.2))
            os.kill(child.pid, signal.SIGKILL)
        assert load_model(tmp_path / "model").digest in digests


def test_a_kill_while_saving(tmp_path):
    kill_while_saving(tmp_path, 3)


@pytest.mark.slow
def test_fifty_kills_while_saving(tmp_path):
    kill_while_saving(tmp_path, 50)
