"""The folder of compiled programs."""

import os
import subprocess
import sys
import time
import zlib

import pytest

from specjax import cache

WHOLE = zlib.compress(os.urandom(1000))


def write(folder, name, content, age=1000.0):
    path = folder / f"{name}-cache"
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("damaged", [WHOLE[:-1], WHOLE[:5], b""])
def test_programs_that_were_cut_off_are_removed_once(tmp_path, damaged):
    kept = [
        write(tmp_path, "whole", WHOLE),
        write(tmp_path, "zstandard", b"\x28\xb5\x2f\xfd..."),
        write(tmp_path, "being-written", damaged, age=0.0),
    ]
    cut = write(tmp_path, "cut", damaged)
    cache._remove_damaged(tmp_path)
    assert not cut.exists()
    assert all(path.exists() for path in kept)


def test_programs_are_checked_once_and_later_ones_too(tmp_path):
    cache._remove_damaged(tmp_path)
    before = write(tmp_path, "before-the-last-check", WHOLE[:-1], age=100.0)
    after = write(tmp_path, "after-the-last-check", WHOLE[:-1], age=10.0)
    later = time.time() + 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.time, "time", lambda: later)
        cache._remove_damaged(tmp_path)
    assert before.exists()
    assert not after.exists()


PROGRAM = """
import sys
from specjax.cache import use_compilation_cache
use_compilation_cache()
import jax
print(jax.jit(lambda x: 2 * x)(3))
"""


def test_a_program_that_was_cut_off_is_replaced_without_a_word(tmp_path):
    """JAX itself warns in every run and never replaces it."""
    folder = tmp_path / "jax"
    own = {"SPECJAX_CACHE": str(tmp_path), "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("6\n", "")
        programs = list(folder.glob("*-cache"))
        assert programs
        for path in programs:
            zlib.decompress(path.read_bytes())  # raises an error if it is damaged
            write(folder, path.name.removesuffix("-cache"), path.read_bytes()[:-1])
        os.utime(folder / "checked", (0, 0))
