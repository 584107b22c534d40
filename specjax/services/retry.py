"""Trying again: which trouble may pass, how long to wait for it, and when to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from specjax.errors import DownloadError
from specjax.progress import Say, say

T = TypeVar("T")


class TransientError(Exception):
    """Trouble that may pass.

    Attributes:
      reason: what happened, for a message.
      asked: seconds that the service asks to wait before the next attempt; None if it does not say.
    """

    def __init__(self, reason: str, asked: float | None = None):
        super().__init__(reason)
        self.reason = reason
        self.asked = asked


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for an answer, and how long before asking again: exponential back-off with jitter.

    The jitter keeps many clients from coming back at the same moment.

    Attributes:
      attempts: how often a request is made before giving up.
      first: seconds before the second attempt; doubled for each further one.
      longest: seconds that a wait never exceeds, unless the service asks for more.
      longest_asked: seconds that the service may ask for; a longer wait is left to the user.
      connect, silence, total: seconds to connect, without a byte, and for a whole answer.
      sleep, clock, jitter: the time, which tests replace; jitter gives numbers in [0, 1).
    """

    attempts: int = 6
    first: float = 1.0
    longest: float = 60.0
    longest_asked: float = 600.0
    connect: float = 10.0
    silence: float = 120.0
    total: float = 1200.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def wait(self, attempt: int, asked: float | None = None) -> float:
        """Seconds to wait after this attempt (the first is 1): never less than what the service asks for."""
        backoff = min(self.longest, self.first * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * self.jitter())
        return backoff if asked is None else max(asked, 0.0) + self.first * self.jitter()

    def keep_trying(self, action: Callable[[], T], what: str, say: Say = say) -> T:
        """What `action` returns, called again while it raises `TransientError`.

        Raises:
          DownloadError: the last attempt failed too, or the service asks to wait for too long.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except TransientError as trouble:
                if attempt == self.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise DownloadError(f"{what}: {trouble.reason} (tried {times})") from None
                if trouble.asked is not None and trouble.asked > self.longest_asked:
                    raise DownloadError(
                        f"{what}: {trouble.reason}, and asks to wait {trouble.asked:.0f} s: run the same "
                        "command again after that, it goes on where it stopped"
                    ) from None
                wait = self.wait(attempt, trouble.asked)
                say(f"{what}: {trouble.reason}; trying again in {wait:.0f} s")
                self.sleep(wait)
        raise DownloadError(f"{what}: not tried, attempts is {self.attempts}")
