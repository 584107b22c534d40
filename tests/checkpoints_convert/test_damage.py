"""Damaged files of every format give the same numbers or a SpecjaxError."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints_convert.archive import Archive
from checkpoints_convert.convert import open_source
from checkpoints_convert.peft_folder import import_adapter
from checkpoints_convert.peft_format import read_peft
from specjax.checkpoints import flatten, load_adapter, load_model
from specjax.errors import SpecjaxError
from tests.checkpoints_convert.smallest import members, rewrite, small_folders, small_model


@dataclass(frozen=True)
class Format:
    """A stored format: its files, how it is read, and the byte ranges in which any change must be noticed."""

    files: list[Path]
    read: Callable[[], dict]
    sealed: Callable[[Path], list[range]]


def torch_values(path):
    source = open_source(path)
    return {key: np.array(tensor.array()) for key, tensor in source.state.items()}


def folder_values(stored):
    arrays = {name: leaf for name, leaf in flatten(stored.arrays) if leaf is not None}
    return {**arrays, "config": json.dumps(stored.config), "digest": stored.digest}


def members_of(path):
    """Return the byte ranges of the members of a zip file."""
    archive = Archive(path)
    starts = {name: archive._data_start(info) for name, info in archive._members.items()}
    return [range(start, start + archive.member_size(name)) for name, start in starts.items()]


def whole(path):
    return [] if path.name == "manifest.json" else [range(path.stat().st_size)]


def tensors_of(path):
    """Return the byte range of the tensors in a safetensors file."""
    if path.suffix != ".safetensors":
        return []
    data = path.read_bytes()
    return [range(8 + int.from_bytes(data[:8], "little"), len(data))]


def formats(place):
    """Write one example of each format."""
    path = small_model(place / "a.ckpt")
    model, adapter, peft = small_folders(place)
    base = load_model(model).digest

    def read_imported():
        config, tensors = read_peft(peft)
        import_adapter(peft, model, place / "imported")
        return {**tensors, "alpha": config["alpha_pattern"] or config["lora_alpha"]}

    return {
        "torch file": Format([path], lambda: torch_values(path), members_of),
        "model": Format(sorted(model.iterdir()), lambda: folder_values(load_model(model)), whole),
        "adapter": Format(
            sorted(adapter.iterdir()), lambda: folder_values(load_adapter(adapter, base=base)), whole
        ),
        "peft": Format(sorted(peft.iterdir()), read_imported, tensors_of),
    }


FORMATS = ("torch file", "model", "adapter", "peft")


def is_refused(original, read):
    """Return whether a damaged file is refused; one that is not must have the same contents."""
    try:
        found = read()
    except SpecjaxError:
        return True
    assert found.keys() == original.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    return False


def check_flips(place, name, count):
    """Flip single bits at random positions in the files of a format."""
    form = formats(place)[name]
    original = form.read()
    rng = np.random.default_rng(0)
    for file in form.files:
        data, sealed = file.read_bytes(), form.sealed(file)
        refused = 0
        for position in rng.integers(0, 8 * len(data), count).tolist():
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << position % 8
            file.write_bytes(damaged)
            found = is_refused(original, form.read)
            refused += found
            assert found or not any(position // 8 in part for part in sealed), (file.name, position)
        file.write_bytes(data)
        # The other flips hit padding, dates and settings that are not read.
        assert refused > count // 10, file


@pytest.mark.parametrize("name", FORMATS)
def test_single_bit_flips(tmp_path, name):
    check_flips(tmp_path, name, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_single_bit_flips(tmp_path, name):
    check_flips(tmp_path, name, 1000)


@pytest.mark.parametrize(("name", "file"), [("torch file", 0), ("model", -1), ("peft", -1)])
def test_every_flip_in_a_tensor_is_refused(tmp_path, name, file):
    form = formats(tmp_path)[name]
    file = form.files[file]
    data, part = file.read_bytes(), max(form.sealed(file), key=len)
    for bit in range(8 * part.stop - 64, 8 * part.stop):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(SpecjaxError, match="damaged"):
            form.read()


def check_truncations(place, name, count):
    form = formats(place)[name]
    original = form.read()
    rng = np.random.default_rng(0)
    for file in form.files:
        data = file.read_bytes()
        for length in rng.integers(0, len(data), count).tolist():
            file.write_bytes(data[:length])
            # The truncation may remove only the final line break of a text.
            assert is_refused(original, form.read) or length == len(data) - 1
        file.write_bytes(data)


@pytest.mark.parametrize("name", FORMATS)
def test_truncations(tmp_path, name):
    check_truncations(tmp_path, name, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_two_hundred_truncations(tmp_path, name):
    check_truncations(tmp_path, name, 200)


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


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """All formats, their contents, and the bytes of their undamaged files."""
    forms = formats(tmp_path_factory.mktemp("stored"))
    original = {name: form.read() for name, form in forms.items()}
    return forms, original, {file: file.read_bytes() for form in forms.values() for file in form.files}


def check_mutation(stored, name, index, steps):
    """Edit a file of a format; "pickle" edits the pickle of the torch file and corrects its CRC."""
    forms, original, contents = stored
    form = forms["torch file" if name == "pickle" else name]
    file = form.files[index % len(form.files)]
    try:
        if name == "pickle":
            content = members(file)
            content["archive/data.pkl"] = mutated(content["archive/data.pkl"], steps)
            rewrite(file, content)
            with contextlib.suppress(SpecjaxError):
                form.read()
        else:
            file.write_bytes(mutated(contents[file], steps))
            # In a PEFT folder, settings may be edited and the digest may be removed.
            with contextlib.suppress(AssertionError if name == "peft" else ()):
                is_refused(original[name], form.read)
    finally:
        file.write_bytes(contents[file])


examples = (st.sampled_from((*FORMATS, "pickle", "torch file", "pickle")), st.integers(0, 2), edits)
options = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@settings(max_examples=150, **options)
@given(*examples)
def test_mutations(stored, name, index, steps):
    check_mutation(stored, name, index, steps)


@pytest.mark.slow
@settings(max_examples=10_000, **options)
@given(*examples)
def test_ten_thousand_mutations(stored, name, index, steps):
    check_mutation(stored, name, index, steps)
