"""Two real processes on loopback: they exchange arrays, and all end if one does."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.processes import free_address, start

PROGRAM = Path(__file__).parent / "program.py"


def pair(mode):
    host, port = free_address().split(":")
    address = f"{host}:{int(port) + 1}"
    return [start(PROGRAM, 2, address, "2", str(rank), mode, stderr=subprocess.PIPE) for rank in range(2)]


def ended(process):
    """Wait for a process; return its status, what it printed, and the lines of its errors."""
    printed, said = process.communicate(timeout=300)
    return process.returncode, printed, [line for line in said.splitlines() if "error" in line.lower()]


def test_they_exchange_arrays_and_the_first_goes_on_alone():
    first, second = pair("exchange")
    printed, said = first.communicate(timeout=300)
    assert (first.returncode, printed) == (0, "2.0\n"), said
    assert "2 processes with 4 devices" in said
    turn = float(said.rpartition("turn of 0 at ")[2])
    printed, said = second.communicate(timeout=300)
    assert (second.returncode, printed) == (0, ""), said
    assert float(said.rpartition("turn of 1 at ")[2]) > turn


@pytest.mark.slow
def test_options_that_differ_end_both():
    for process in pair("differ"):
        line = "specjax: error: seeds is 3 in process 0, but 4 in process 1"
        assert ended(process) == (1, "", [line])


@pytest.mark.slow
def test_an_error_in_one_ends_both():
    first, second = pair("fail")
    assert ended(second) == (1, "", ["specjax: error: the disk is full"])
    assert ended(first) == (1, "", ["specjax: error: process 1 failed: the disk is full"])


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", [0, 1])
def test_all_end_with_one_line_when_one_is_killed(victim, number):
    both = pair("wait")
    for process in both:
        for line in process.stderr:
            if line == "ready\n":
                break
    both[victim].send_signal(number)
    status, printed, errors = ended(both[1 - victim])
    assert (status, printed, len(errors)) == (1, "", 1), errors
    assert "was killed, or its host was lost: start all again to resume" in errors[0]
    assert ended(both[victim])[0] == -number
