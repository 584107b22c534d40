"""Progress of long work: lines on stderr, so that stdout holds the result alone."""

import sys
from collections.abc import Callable

Say = Callable[[str], None]


def say(text: str) -> None:
    """Print a line of progress to stderr at once."""
    print(text, file=sys.stderr, flush=True)
