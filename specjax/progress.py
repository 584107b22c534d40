"""Progress messages of long computations, on stderr so that stdout holds only results."""

import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]
"""A function that receives one line of progress."""


def say(text: str) -> None:
    """Print a line of progress to stderr, unbuffered."""
    print(text, file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """Discard a line of progress."""


class Pace:
    """A rate limiter for progress messages, so that fast work does not flood the terminal."""

    def __init__(self, seconds: float = 5.0) -> None:
        """Allow one message per interval of `seconds`."""
        self.seconds = seconds
        self.started = self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the limiter was created."""
        return time.monotonic() - self.started

    def due(self) -> bool:
        """Return whether the next message is due; if so, start a new interval."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
