import gc
import signal
import threading
import time

import pytest

from specjax.interrupt import deferred_interrupt, deferred_termination, repeated_interrupt


@pytest.fixture(autouse=True)
def _default_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def use(steps, reached):
    """Run steps with interrupts deferred, and note those that are reached."""
    with deferred_interrupt() as deferred:
        for step in steps:
            reached.append(step)
            deferred.check() if step == "check" else interrupt()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["check", "interrupt", "check", "check"], 3),
        (["interrupt"], 1),  # not lost without a check
        (["interrupt", "interrupt", "check"], 2),  # the second takes effect at once
    ],
)
def test_an_interrupt_waits_for_the_next_check(steps, expected):
    reached = []
    with pytest.raises(KeyboardInterrupt):
        use(steps, reached)
    assert len(reached) == expected
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_raised_without_an_interrupt():
    use(["check", "check"], [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_and_threads_are_left_alone():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    failed = []

    def in_thread():
        try:
            with deferred_interrupt() as deferred:
                deferred.check()
        except ValueError as error:  # handlers can be set in the main thread only
            failed.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert failed == []


def test_sigterm_is_noted_and_the_second_one_ends_the_process():
    with deferred_termination() as termination:
        assert not termination.requested
        signal.raise_signal(signal.SIGTERM)
        assert termination.requested
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_caller_keeps_sigterm():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with deferred_termination() as termination:
            signal.raise_signal(signal.SIGTERM)
        assert (seen, termination.requested) == ([signal.SIGTERM], False)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost(capfd):
    reached = []

    def callback(phase, info):
        gc.callbacks.remove(callback)
        interrupt()

    def collect():
        gc.callbacks.append(callback)
        gc.collect()
        reached.append("goes on")
        for _ in range(100):
            time.sleep(0.05)
        reached.append("to the end")

    with pytest.raises(KeyboardInterrupt), repeated_interrupt():
        collect()
    assert "to the end" not in reached
    assert capfd.readouterr().err == ""
