"""Frozen features on disk: bit-exact, never of something else, bounded, and no trouble where damaged."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from specjax.adapt import feature_cache
from specjax.errors import ConfigError
from specjax.foundation import BackboneFeatures, Foundation, ModelInput
from tests.damage import flip
from tests.models.tiny import TINY, random_system

FLUX = np.random.default_rng(0).normal(1, 0.1, (5, TINY.specformer.num_pixels)).astype(np.float32)
VALID = np.ones(FLUX.shape, bool)
RANDOM = np.random.default_rng(1)
MADE = BackboneFeatures(*(RANDOM.normal(size=(1, 5, d)).astype(np.float32) for d in (24, 28)))


@pytest.fixture
def model():
    return Foundation(config=TINY, variables=random_system())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(feature_cache.VARIABLE, raising=False)
    monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path))
    return tmp_path / "features"


def ask(model, flux=FLUX, valid=VALID):
    """(was it made, what came back)"""
    calls = []
    found = feature_cache.cached(lambda: calls.append(1) or MADE, model, ModelInput(flux, valid))
    return bool(calls), found


def test_what_was_made_comes_back_to_the_bit(model, folder):
    assert ask(model)[0]
    made, found = ask(model)
    assert not made
    for one, other in zip(found, MADE, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_anything_else_is_made_anew(model, folder, monkeypatch):
    ask(model)
    moved = np.nextafter(FLUX, 2)
    masked = VALID.copy()
    masked[0, 0] = False
    params = jax.tree.map(np.array, dict(model.params))
    params["lamost"]["backbone"]["final_layernorm"]["bias"][0] += 1e-6
    other = dataclasses.replace(model, variables={**model.variables, "params": params})
    narrow = dataclasses.replace(TINY, specformer=dataclasses.replace(TINY.specformer, num_heads=4))
    for given in (
        (model, moved, VALID),
        (model, FLUX, masked),
        (model, FLUX[:4], VALID[:4]),
        (other, FLUX, VALID),
        (dataclasses.replace(model, dtype="bfloat16"), FLUX, VALID),
        (dataclasses.replace(model, config=narrow), FLUX, VALID),
    ):
        assert ask(*given)[0]
        assert not ask(*given)[0]
    heads = {**model.params, "mlp1": jax.tree.map(lambda leaf: leaf + 1, model.params["mlp1"])}
    assert not ask(dataclasses.replace(model, variables={**model.variables, "params": heads}))[0]
    monkeypatch.setattr(feature_cache, "_code", lambda: "another version")
    assert ask(model)[0]


@pytest.mark.parametrize("damage", [b"", b"no archive", None, "flipped"])
def test_a_damaged_file_is_made_again(model, folder, damage):
    ask(model)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({None: whole[:middle], "flipped": flipped}.get(damage, damage))
    made, found = ask(model)
    assert made
    np.testing.assert_array_equal(found.mean, MADE.mean)
    assert path.read_bytes() == whole


def test_the_oldest_go(model, folder, monkeypatch):
    shifted = [FLUX + shift for shift in range(3)]
    for age, flux in enumerate(shifted[:2]):
        ask(model, flux)
        newest = max(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        os.utime(newest, (age, age))
    monkeypatch.setenv(feature_cache.VARIABLE, str(2.5 * newest.stat().st_size / 2**20))
    assert not ask(model, shifted[0])[0]  # used, and so the newest
    ask(model, shifted[2])
    assert len(list(folder.iterdir())) == 2
    assert not ask(model, shifted[0])[0]
    assert ask(model, shifted[1])[0]


def test_it_can_be_switched_off(model, folder, monkeypatch):
    monkeypatch.setenv(feature_cache.VARIABLE, "0")
    assert ask(model)[0]
    assert ask(model)[0]
    assert not folder.exists()
    monkeypatch.setenv(feature_cache.VARIABLE, "much")
    with pytest.raises(ConfigError, match="SPECJAX_FEATURES_MIB must be a number"):
        ask(model)


def test_a_folder_that_cannot_be_written_is_no_trouble(model, folder):
    folder.write_text("a file")
    assert ask(model)[0]
    assert ask(model)[0]


def test_features_with_a_flipped_bit_are_made_anew(model, folder):
    ask(model)
    (path,) = folder.glob("*.npz")
    data = path.read_bytes()
    made = 0
    for bit in range(100, 8 * len(data), 211):
        path.write_bytes(flip(data, bit))
        anew, found = ask(model)
        made += anew
        for one, other in zip(found, MADE, strict=True):
            np.testing.assert_array_equal(one, other)
    assert made > 40
