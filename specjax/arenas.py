"""Memory of the C library."""

import ctypes
import os

_M_ARENA_MAX = -8  # of malloc.h
_ARENAS = 2


def share_arenas() -> None:
    """Let all threads of this process take memory from the same two arenas, where the C library is glibc's.

    By default it makes new arenas for new threads, up to eight per core, and each of them keeps what was
    freed in it. In a long prediction that is a third of the memory. Does nothing if MALLOC_ARENA_MAX is set.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library or system
        return
    mallopt(_M_ARENA_MAX, _ARENAS)
