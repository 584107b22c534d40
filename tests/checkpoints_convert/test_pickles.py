"""Malicious pickles run nothing, and malformed ones raise a SpecjaxError."""

import builtins
import os
import struct
import subprocess
import sys

import pytest

from checkpoints_convert.__main__ import main, run
from checkpoints_convert.torch_file import _CONSTRUCTORS, open_torch_file
from checkpoints_convert.unpickle import Opaque, unpickle
from specjax.errors import SpecjaxError
from tests.checkpoints_convert.smallest import members, rewrite, small_model

RAN = "specjax_test_code_from_a_file_ran"


@pytest.fixture(autouse=True)
def _nothing_runs():
    yield
    assert not hasattr(builtins, RAN)
    assert RAN not in os.environ


def harm(call):
    """Return opcodes that set RAN in builtins or the environment if a pickle can run code."""
    return {
        "reduce": b"cbuiltins\nsetattr\n(cbuiltins\n__import__\n(S'builtins'\ntRS'%s'\nI1\ntR" % RAN.encode(),
        "exec": b"cbuiltins\nexec\n(S'import builtins; builtins.%s = 1'\ntR" % RAN.encode(),
        "inst": b"(S'import builtins; builtins.%s = 1'\nibuiltins\nexec\n" % RAN.encode(),
        "obj": b"(cbuiltins\nexec\nS'import builtins; builtins.%s = 1'\no" % RAN.encode(),
        "newobj": b"cbuiltins\nexec\n(S'import builtins; builtins.%s = 1'\nt\x81" % RAN.encode(),
        "stack_global": b"\x8c\x08builtins\x8c\x04exec\x93(S'import builtins; builtins.%s = 1'\ntR"
        % RAN.encode(),
        "putenv": b"cos\nputenv\n(S'%s'\nS'1'\ntR" % RAN.encode(),
        "newobj_ex": b"cbuiltins\nexec\n(S'import builtins; builtins.%s = 1'\nt}\x92" % RAN.encode(),
        "build": b"cbuiltins\nobject\n)\x81}S'__setstate__'\ncbuiltins\nexec\nsbS'%s'\nb" % RAN.encode(),
        "numpy": b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nexec\n(I0\ntS'%s'\ntR" % RAN.encode(),
        "torch_load": b"ctorch\nload\n(S'/%s'\ntR" % RAN.encode(),
        "from_type": b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nexec\nN(S'%s'\ntNtR" % RAN.encode(),
        "dotted": b"\x8c\x02os\x8c\x0eenviron.update\x93(}S'%s'\nS'1'\nstR" % RAN.encode(),
    }[call]


CALLS = (
    *("reduce", "exec", "inst", "obj", "newobj", "newobj_ex", "build", "stack_global", "putenv", "dotted"),
    *("numpy", "torch_load"),
)

# Pickles that must be refused.
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
    "a_class_in_place_of_a_tensor": harm("from_type") + b".",
    "dict_with_code": b"ccollections\nOrderedDict\n((lp0\ntR.",
}


def no_storage(_):
    raise ValueError("no storages here")


def read(data):
    return unpickle(data, _CONSTRUCTORS, no_storage)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_in_a_pickle_runs(call):
    read(harm(call) + b".")
    read(b"(" + harm(call) + b"l.")
    read(b"}S'state_dict'\n" + harm(call) + b"s.")
    # An Opaque that is built, called again, and used as a key or a persistent id.
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


PRIME = (1 << 61) - 1  # Python's hash of an integer is its remainder


def colliding(number):
    """A key whose hash is 1, and None."""
    return b"\x8a\x20" + (1 + PRIME * (number << 100)).to_bytes(32, "little") + b"N"


def colliding_pair(number):
    """A tuple of two such integers, and None."""
    item = colliding(number)[:-1]
    return item + item + b"\x86N"


LONG_CALL = b"ctorch._utils\n_rebuild_parameter\nh\x00R0"

BOMBS = {
    "marks": b"(" * 200_000 + b".",
    "a list that holds itself": b"(lp0\n" + b"h\x00a" * 10 + b".",
    "a tuple in a tuple, deep": b")" + b"\x85" * 200_000 + b".",
    "a tuple of 2**200 leaves": b")" + b"2\x86" * 200 + b".",
    "the same as a key": b"})" + b"2\x86" * 60 + b"Ns.",
    "a memo slot of 4 billion": b"r\xff\xff\xff\xff.",
    "the same, often": b"N" + b"r\xff\xff\xff\xff" * 1000 + b".",
    "an extension code": b"\x82\x01.",
    "the largest extension code": b"\x84\xff\xff\xff\x7f.",
    "a frame longer than the file": b"\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "a long tuple": b"(" + b"N" * 1_000_000 + b"t0N.",
    "nested lists": b"]" * (8 << 20),
    "lists in lists": b"(" * 4 + b"]a" * (4 << 20) + b".",
    "integers with the hash of 1": b"}(" + b"".join(map(colliding, range(60_000))) + b"u.",
    "tuples with one hash": b"}(" + b"".join(map(colliding_pair, range(60_000))) + b"u.",
    "long arguments, often": b"(" + b"N" * 500_000 + b"tp0\n" + LONG_CALL * 150_000 + b".",
}

# Limits of 30 s of CPU time and 1 GiB; expanded, the bombs would take hours or all memory.
DEFUSE = """
import contextlib, resource, sys
from checkpoints_convert.torch_file import _CONSTRUCTORS
from checkpoints_convert.unpickle import unpickle
from specjax.errors import SpecjaxError
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
for line in sys.stdin:
    with contextlib.suppress(SpecjaxError):
        unpickle(bytes.fromhex(line), _CONSTRUCTORS, None)
    print("survived")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on resources")
def test_bombs_are_harmless():
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OPENBLAS_NUM_THREADS": "1"}
    lines = "".join(data.hex() + "\n" for data in BOMBS.values())
    command = [sys.executable, "-c", DEFUSE]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (list(BOMBS)[done.stdout.count("survived")], done.stderr)


def test_an_opaque_records_its_call_and_does_nothing():
    found = read(b"cos\nsystem\n(S'true'\ntR.")
    assert isinstance(found, Opaque)
    assert (found.name, found.args) == ("os.system", ("true",))


def test_keys_whose_hashes_a_file_can_choose_are_not_used_as_such():
    found = read(b"}(K\x07N" + colliding(1) + colliding_pair(1) + b"G?\xf0\x00\x00\x00\x00\x00\x00Nu.")
    assert [type(key) for key in found] == [int, Opaque, Opaque, float]


def test_names_in_a_file_cannot_control_the_terminal(tmp_path, capsys):
    content = members(small_model(tmp_path / "a.ckpt"))
    name = b"input_proj.weight"
    assert name in content["archive/data.pkl"]
    content["archive/data.pkl"] = content["archive/data.pkl"].replace(name, b"\x1b[2J\r" + name[5:])
    rewrite(tmp_path / "b.ckpt", content)
    assert main([str(tmp_path / "b.ckpt"), "--list"]) == 0

    def fail():
        raise SpecjaxError("no tensor \x1b[2J\rinput")

    assert run(fail) == 1
    shown = capsys.readouterr()
    assert r"\x1b[2J" in shown.out
    assert r"\x1b[2J" in shown.err
    assert (shown.out + shown.err).replace("\n", "").isprintable()


def test_an_unknown_byte_order_is_refused(tmp_path):
    content = members(small_model(tmp_path / "a.ckpt"))
    content["archive/byteorder"] = b"middle"
    rewrite(tmp_path / "b.ckpt", content)
    with pytest.raises(SpecjaxError, match=r"b\.ckpt has the unknown byte order 'middle'"):
        open_torch_file(tmp_path / "b.ckpt")
