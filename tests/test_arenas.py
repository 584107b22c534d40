import os
import subprocess
import sys

import pytest

# Eight threads at once take memory of their own; the C library then lists its arenas.
_ALLOCATE = """
import ctypes, sys, threading
from specjax.arenas import share_arenas
{call}
libc, together, kept = ctypes.CDLL(None), threading.Barrier(8), []
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

def take():
    together.wait()
    kept.extend(libc.malloc(5000) for _ in range(100))
    together.wait()

threads = [threading.Thread(target=take) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_stats()
"""


def arenas(call, **environment):
    command = [sys.executable, "-c", _ALLOCATE.format(call=call)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stderr.count("Arena ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is not glibc")
def test_threads_share_two_arenas():
    if arenas("") <= 2:
        pytest.skip("the C library makes no arenas for threads")
    assert arenas("share_arenas()") == 2
    assert arenas("share_arenas()", MALLOC_ARENA_MAX="4") == 4


_REPEAT = """
import resource
import numpy as np
from specjax.arenas import keep_memory
{call}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (1 << 19, 1 << 22, 1 << 24):
        first, second = np.ones(size), np.ones(size)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is not glibc")
def test_freed_arrays_are_used_again():
    def faults(call):
        command = [sys.executable, "-c", _REPEAT.format(call=call)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    usual = faults("")
    if usual < 100:
        pytest.skip("the C library keeps memory by itself")
    assert faults("keep_memory()") < 0.1 * usual
