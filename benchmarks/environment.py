"""Device, versions, date, load and peak memory of a run."""

import datetime
import importlib.metadata
import os
import platform
import resource
from pathlib import Path
from typing import Any

import jax


def describe(dtype: str) -> dict[str, Any]:
    """Return the device, versions, date and peak memory."""
    # Not at the top: memory.py and cold.py measure `process_peak`, which must not include the survey readers.
    from specjax.prepare.pool import core_count

    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for name in ("jax", "flax", "torch", "peft"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": core_count(),
        "dtype": dtype,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions,
        "peak_memory": peak_memory(),
    }


def load_average() -> float:
    """Return the number of processes that wanted to run, averaged over the last minute; NaN if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def peak_memory() -> int:
    """Return the peak memory of JAX's device in bytes, or of the process if the device does not report it."""
    device_peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return device_peak or process_peak()


def process_peak() -> int:
    """Return the peak resident memory of the process in bytes."""
    try:
        # `getrusage` would include the memory of the parent at the fork.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
