"""Memory of the C library."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_ARENAS = 2
_ALL = 2**31 - 1  # the largest that mallopt takes
_LARGEST_KEPT = 1 << 29  # bytes of an array


def share_arenas() -> None:
    """Let all threads of this process take memory from the same two arenas, where the C library is glibc's.

    By default it makes new arenas for new threads, up to eight per core, and each of them keeps what was
    freed in it. In a long prediction that is a third of the memory. Does nothing if MALLOC_ARENA_MAX is set.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _set(_M_ARENA_MAX, _ARENAS)


def keep_memory() -> None:
    """Let this process keep the memory of freed arrays for the next ones, where the C library is glibc's.

    For a process that does the same again and again: otherwise the system clears every page anew, which took
    7% of the CPU time of preprocessing. Does nothing if MALLOC_TRIM_THRESHOLD_ is set.
    """
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        _set(_M_TRIM_THRESHOLD, _ALL)
        _set(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


def _set(parameter: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(parameter, value)
    except (AttributeError, OSError, TypeError):  # another C library or system
        return
