"""Streamed stages over devices: eight forced ones in a process, and two processes of two on loopback."""

from pathlib import Path

import pytest

from tests.pretrain.files import write
from tests.processes import free_address, outcome, start

PROGRAM = Path(__file__).parent / "many_devices.py"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("files") / "pairs.h5", {"train": 192, "val": 32}))


@pytest.mark.slow
def test_eight_devices_train_as_one_does(pairs, tmp_path):
    output = outcome(start(PROGRAM, 8, "one-process", pairs, str(tmp_path)))
    assert "8 devices: same losses, same parameters, a share of the state each" in output


@pytest.mark.slow
def test_two_processes_train_as_one_does(pairs, tmp_path):
    words = ["two-processes", pairs, str(tmp_path), free_address()]
    both = [start(PROGRAM, 2, *words, str(rank)) for rank in range(2)]
    for rank, process in enumerate(both):
        assert f"process {rank} of 2: same parameters, ended and resumed" in outcome(process)
