"""Run test programs in separate processes with a forced number of CPU devices."""

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(program, count, *words, env=None, stderr=subprocess.STDOUT):
    """Start a program on `count` devices, with more environment variables."""
    return subprocess.Popen(
        [sys.executable, program, *words],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            **(env or {}),
        },
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def outcome(process):
    """Wait for a process to succeed and return its output."""
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


def free_address():
    """Return a free loopback address for the coordinator of several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
