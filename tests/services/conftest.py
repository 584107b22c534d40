import itertools

import pytest

from specjax.services.retry import Retry
from tests.services.archive_server import Archive, star


@pytest.fixture
def archive(monkeypatch):
    """Twelve stars behind a server on this machine, which the environment names as the archive."""
    server = Archive([star(number) for number in range(12)])
    monkeypatch.setenv("SPECJAX_SPARCL_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def waits():
    """The seconds that were waited, as far as anybody knows."""
    return []


@pytest.fixture
def retry(waits):
    """Retry that takes no time: waits are written down, and each look at the clock is a second later."""
    clock = itertools.count()
    return Retry(
        attempts=4, total=8.0, sleep=waits.append, clock=lambda: float(next(clock)), jitter=lambda: 0.5
    )
