"""Retry requests that fail for a transient reason: exponential back-off with jitter, and a limit."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from specjax.errors import DownloadError
from specjax.progress import Say, say

T = TypeVar("T")


class TransientError(Exception):
    """A failure that may pass; its text is the reason.

    Attributes:
        retry_after: seconds that the service asks to wait before the next attempt; None if it does not ask.
    """

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When a request is repeated: number of attempts, waits between them, and timeouts.

    The waits grow exponentially, with jitter so that many clients do not return at the same moment.

    Attributes:
        attempts: how often a request is made before giving up.
        first_wait: seconds before the second attempt; doubled for each further one.
        max_wait: upper limit of a wait, in seconds, unless the service asks for more.
        max_retry_after: longest wait in seconds that the service may ask for; a longer one is an error.
        connect: timeout for the connection, in seconds.
        read: timeout between two bytes, in seconds.
        total: timeout for a whole response, in seconds.
        sleep, clock: how to wait and how to read the time; tests replace them.
        jitter: gives random numbers in [0, 1).
    """

    attempts: int = 6
    first_wait: float = 1.0
    max_wait: float = 60.0
    max_retry_after: float = 600.0
    connect: float = 10.0
    read: float = 120.0
    total: float = 1200.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def wait(self, attempt: int, retry_after: float | None = None) -> float:
        """Return the seconds to wait after an attempt (the first is 1), never less than `retry_after`."""
        backoff = min(self.max_wait, self.first_wait * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * self.jitter())
        return backoff if retry_after is None else max(retry_after, 0.0) + self.first_wait * self.jitter()

    def call(self, action: Callable[[], T], what: str, say: Say = say) -> T:
        """Return the result of `action`, which is called again while it raises `TransientError`.

        Raises:
            DownloadError: the last attempt failed too, or the service asks for too long a wait.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except TransientError as error:
                if attempt == self.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise DownloadError(f"{what}: {error} (tried {times})") from None
                if error.retry_after is not None and error.retry_after > self.max_retry_after:
                    raise DownloadError(
                        f"{what}: {error}, and asks to wait {error.retry_after:.0f} s; run the same command "
                        "again after that to resume"
                    ) from None
                wait = self.wait(attempt, error.retry_after)
                say(f"{what}: {error}; trying again in {wait:.0f} s")
                self.sleep(wait)
        raise DownloadError(f"{what}: not tried, because attempts is {self.attempts}")
