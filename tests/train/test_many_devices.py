"""Training over devices: eight forced ones in a process, and two processes of two on loopback."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "many_devices.py"
ROOT = PROGRAM.parent.parent.parent


def start(count, *words):
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }
    return subprocess.Popen(
        [sys.executable, PROGRAM, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process):
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    assert "8 devices: same seeds, same stages" in outcome(start(8, "one-process"))


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    both = [start(2, "two-processes", address, str(rank), str(tmp_path)) for rank in range(2)]
    for rank, process in enumerate(both):
        assert f"process {rank} of 2: same seeds, same stages" in outcome(process)
