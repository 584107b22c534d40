"""Progress of long work: lines on stderr, so that stdout holds the result alone."""

import sys
import time
from collections.abc import Callable

Say = Callable[[str], None]
"""Takes one line of progress."""


def say(text: str) -> None:
    """Print a line of progress to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """Drop a line of progress."""


class Pace:
    """Tells when the next line of progress is due, so that fast work does not flood the terminal."""

    def __init__(self, seconds: float = 5.0) -> None:
        """Allow one line every so many seconds."""
        self.seconds = seconds
        self.started = self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def due(self) -> bool:
        """Say whether enough time has passed since the last line; if so, the wait starts again."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
