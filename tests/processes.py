"""Test programs in processes of their own, with as many forced CPU devices as a test asks for."""

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(program, count, *words):
    return subprocess.Popen(
        [sys.executable, program, *words],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process):
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


def free_address():
    """An address on loopback that processes can meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
