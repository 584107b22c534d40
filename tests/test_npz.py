"""Damage to .npz files: parts of unfinished runs, features and arrays."""

import numpy as np
import pytest

from specjax.npz import NpzError, read_npz
from tests.damage import flip


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", flux=rng.random((3, 40)), ivar=rng.random(40), id=np.array(["a", "b", "c"]))
    return tmp_path / "a.npz"


def test_no_flipped_bit_changes_an_array_or_hides_it(path):
    expected, data = read_npz(path), path.read_bytes()
    assert sorted(expected) == ["flux", "id", "ivar"]
    refused = 0
    for bit in range(0, 8 * len(data), 23):
        path.write_bytes(flip(data, bit))
        try:
            found = read_npz(path)
        except NpzError as error:
            refused += "\n" not in str(error)
            continue
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert refused > 600


def test_truncations_are_refused(path):
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(NpzError):
            read_npz(path)


def test_only_the_wanted_arrays_are_read_and_none_beyond_the_limit(path):
    assert list(read_npz(path, lambda name: name == "id")) == ["id"]
    assert len(read_npz(path, limit=10_000)) == 3
    with pytest.raises(NpzError, match="too much"):
        read_npz(path, limit=1000)
    with pytest.raises(FileNotFoundError):
        read_npz(path.with_name("b.npz"))
