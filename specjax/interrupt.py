"""Interrupts (Ctrl-C) and requests to end (SIGTERM) that take effect between the steps of a computation.

A KeyboardInterrupt can be raised inside the callback of a compiled library, which then discards it. SIGTERM
is what a batch system sends before it takes a machine away.
"""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specjax.progress import say

_SOON = 0.02  # seconds


class Interrupt:
    """Whether there was an interrupt, see `deferred_interrupt`."""

    def __init__(self) -> None:
        """Start without an interrupt."""
        self.requested = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was an interrupt."""
        if self.requested:
            self.requested = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        """Remember the first interrupt; raise KeyboardInterrupt at the second one."""
        self.check()
        self.requested = True


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Defer an interrupt until `Interrupt.check` is called, or the `with` block ends without an error.

    A second interrupt takes effect at once. Outside the main thread, and where interrupts are ignored or
    handled by the caller, nothing changes.
    """
    interrupt = Interrupt()
    with _handled(signal.SIGINT, signal.default_int_handler, interrupt._handle):
        yield interrupt
    interrupt.check()


@contextmanager
def repeated_interrupt() -> Iterator[None]:
    """Repeat an interrupt inside the block that a callback, such as JAX's of the garbage collector, discards.

    Python would print it with a traceback and go on as if nothing had been asked.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            # Later, as it would be discarded here as well.
            threading.Timer(_SOON, _thread.interrupt_main).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


@contextmanager
def ignored_interrupt() -> Iterator[None]:
    """Ignore interrupts inside the block, as do the processes that are started there.

    Outside the main thread, and where interrupts are handled by the caller, nothing changes.
    """
    with _handled(signal.SIGINT, signal.default_int_handler, signal.SIG_IGN):
        yield


@contextmanager
def explained_interrupt(kept: str) -> Iterator[None]:
    """Say at an interrupt inside the block what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(kept)
        raise


class Terminated(Exception):  # noqa: N818
    """The work was saved because of SIGTERM; the message says how to go on."""


class Termination:
    """Whether the process was asked to end, see `deferred_termination`."""

    def __init__(self) -> None:
        """Start without a request."""
        self.requested = False


@contextmanager
def deferred_termination() -> Iterator[Termination]:
    """Note SIGTERM instead of ending the process; whoever has saved the work raises `Terminated`.

    A second SIGTERM ends the process. Outside the main thread, and where the caller handles the signal,
    nothing changes.
    """
    termination = Termination()

    def handle(number: int, frame: Any) -> None:
        termination.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    with _handled(signal.SIGTERM, signal.SIG_DFL, handle):
        yield termination


@contextmanager
def _handled(number: signal.Signals, default: Any, handler: Any) -> Iterator[None]:
    """Handle a signal in a `with` block of the main thread, if its handler is still the default one."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(number) is not default:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, default)
