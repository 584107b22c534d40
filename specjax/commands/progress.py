"""Progress of a command: lines on stderr, so that stdout holds the result alone."""

import sys


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
