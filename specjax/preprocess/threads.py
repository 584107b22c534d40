"""Rows of spectra on the threads of a process, each with linear algebra on one thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Piece = TypeVar("Piece")

# Only one thread at a time can set the threads of linear algebra, and one caller occupies all cores anyway.
# All large products of NumPy in a run are made here: elsewhere the limit of another thread would slow them.
_ALONE = Lock()


def for_each(function: Callable[[Piece], object], pieces: Sequence[Piece]) -> None:
    """Call a function for each piece, on as many threads as linear algebra may use.

    Products of the few hundred rows that fit into a cache are too small to be divided among threads, which
    would spend as much CPU time again on waiting for each other; whole pieces are not. Meanwhile linear
    algebra has one thread, so that results do not depend on the number of threads of a machine.

    Args:
        function: writes its result to where it belongs; NumPy releases the interpreter's lock meanwhile. It
            must not call `for_each`, whose callers wait for each other.
        pieces: in the order in which they are begun.

    Raises:
        Exception: what the function raised for the first piece for which it did.
    """
    blas = _blas()
    with _ALONE:
        threads = max((library["num_threads"] for library in blas.info()), default=1)
        if threads <= 1:
            for piece in pieces:
                function(piece)
            return
        # The pool comes last, so that its threads have ended before the limit does.
        with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
            calls = [pool.submit(function, piece) for piece in pieces]
            try:
                for call in calls:
                    call.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


@cache
def _blas() -> ThreadpoolController:
    """Return the libraries of linear algebra, which take some milliseconds to find."""
    return ThreadpoolController().select(user_api="blas")
