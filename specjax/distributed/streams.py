"""What compiled libraries print in a run of several processes: nothing to stdout, and no news of other ends.

Gloo reports its connections on stdout, which is for results. JAX, when it loses the connection to process 0,
writes a page to stderr and aborts; the first line of that page is taken as the news instead.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

LOST = "another process was killed, or its host was lost: start all again to resume"

_NEWS = (b"Polled an error from coordination service", b"the JAX distributed service detected fatal errors")
_ending = threading.Lock()


@contextlib.contextmanager
def own_streams(lost: Callable[[str], None]) -> Iterator[None]:
    """Keep stdout and stderr for Python; pass on what compiled libraries write to stderr.

    Args:
        lost: is called with the reason, from a thread, when JAX says that it has lost another process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    python = sys.stdout, sys.stderr
    reader, writer = os.pipe()
    with (
        os.fdopen(os.dup(1), "w") as stdout,
        os.fdopen(os.dup(2), "w", buffering=1) as stderr,
        open(os.devnull, "w") as nothing,
    ):
        sys.stdout, sys.stderr = stdout, stderr
        os.dup2(nothing.fileno(), 1)
        os.dup2(writer, 2)
        os.close(writer)
        thread = threading.Thread(target=_pass_on, args=(reader, stderr.fileno(), lost), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stdout.flush()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)  # the last copy of `writer`
            sys.stdout, sys.stderr = python
            thread.join(5)


def end_process(reason: str) -> None:
    """End this process at once, whatever its other threads wait for, with one line on stderr."""
    _ending.acquire()  # for good: only one thread may say why
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"specjax: error: {' '.join(reason.split())}\n".encode())
    os._exit(1)


def _pass_on(reader: int, stderr: int, lost: Callable[[str], None]) -> None:
    """Copy lines from one file descriptor to another, until the first is closed."""
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            if any(news in line for news in _NEWS):
                lost(LOST)
            with contextlib.suppress(OSError):
                os.write(stderr, line)
