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


def duration(seconds: float) -> str:
    """Return a duration to about a tenth.

    >>> duration(12.3), duration(150), duration(9000), duration(1e6)
    ('12 s', '2.5 min', '2.5 h', '11.6 d')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 100 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"
