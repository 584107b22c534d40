"""Training over devices: eight forced ones in a process, and two processes of two on loopback."""

from pathlib import Path

import pytest

from tests.processes import free_address, outcome, start

PROGRAM = Path(__file__).parent / "many_devices.py"


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    assert "8 devices: same seeds, same stages" in outcome(start(PROGRAM, 8, "one-process"))


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    address = free_address()
    both = [start(PROGRAM, 2, "two-processes", address, str(rank), str(tmp_path)) for rank in range(2)]
    for rank, process in enumerate(both):
        assert f"process {rank} of 2: same seeds, same stages" in outcome(process)
