import itertools

import pytest

from specjax.services.retry import Retry
from tests.services.archive_server import serve, star


@pytest.fixture
def archive(monkeypatch):
    """Twelve stars on a local server that the environment names as the archive."""
    with serve([star(number) for number in range(12)], monkeypatch) as server:
        yield server


@pytest.fixture
def waits():
    """The waits so far, in seconds."""
    return []


@pytest.fixture
def retry(waits):
    """A policy that takes no time: waits are recorded, and each look at the clock advances it by 1 s."""
    clock = itertools.count()
    return Retry(
        attempts=4, total=8.0, sleep=waits.append, clock=lambda: float(next(clock)), jitter=lambda: 0.5
    )
