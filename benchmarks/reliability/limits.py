"""Machines that lack something: space on the disk, permissions, a home folder or memory.

Permissions do not bind root, so that commands without them run as another user.
"""

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.commands import Command, environment_of
from specjax.errors import SpecjaxError
from specjax.typing import AnyArray

FILE_SIZE = 8 << 10
NOBODY = 65534
_HOMES = ("HOME", "SPECJAX_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """What a process lacks.

    Attributes:
        environment: its variables.
        file_size: bytes that no file may exceed.
        memory: bytes of address space.
        stranger: it runs as a user who may only read, if this one is root.
        writable: that user may write the folder of the output.
    """

    environment: Mapping[str, str]
    file_size: int | None = None
    memory: int | None = None
    stranger: bool = False
    writable: bool = True

    def take(self) -> None:
        """Take it away from this process."""
        if self.file_size is not None:  # Python turns the signal into an error
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size,) * 2)
        if self.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (self.memory,) * 2)


def make_limits(place: Path, cache: Path, megabytes: int) -> dict[str, Limit]:
    """Return the limits, by what is lacking; `place` gets the homes that they need."""
    usual = environment_of(cache)
    homeless = {name: value for name, value in usual.items() if name not in _HOMES}
    closed, own = place / "closed", place / "own cache"
    for folder, mode in ((closed, 0o555), (own, 0o777)):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
    return {
        "full disk": Limit(environment=usual, file_size=FILE_SIZE),
        "folder of the output": Limit(
            environment={**usual, "SPECJAX_CACHE": str(own)}, stranger=True, writable=False
        ),
        "no HOME": Limit(environment=homeless),
        "HOME cannot be written": Limit(environment={**homeless, "HOME": str(closed)}, stranger=True),
        f"{megabytes} MB of memory": Limit(environment=usual, memory=megabytes << 20),
    }


def limit_command(command: Command, place: Path, limit: Limit, reference: AnyArray) -> dict[str, Any]:
    """Run a command under a limit and say how it ends.

    Returns:
        The exit status, the last line of the errors, whether it was one line of specjax, whether there was a
        traceback, the state of the output, and what is left beside it.
    """
    out = place / "limited" / command.out
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    out.parent.chmod(0o777 if limit.writable else 0o555)
    other = (
        {"user": NOBODY, "group": NOBODY, "extra_groups": []} if limit.stranger and not os.getuid() else {}
    )
    done = subprocess.run(
        [sys.executable, "-m", "specjax", *command.filled(out)],
        env=dict(limit.environment),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=limit.take,
        check=False,
        **other,  # type: ignore[call-overload]
    )
    return _ending(command, done.returncode, done.stderr, out, reference)


def _ending(command: Command, status: int, errors: str, out: Path, reference: AnyArray) -> dict[str, Any]:
    lines = [line for line in errors.splitlines() if line.strip()]
    return {
        "status": status,
        "last": lines[-1][:300] if lines else "",
        "clear": status == 0 or (bool(lines) and lines[-1].startswith("specjax: error:")),
        "traceback": any(line.startswith("Traceback") for line in lines),
        "output": output_state(command, out, reference),
        "left": sorted(path.name for path in out.parent.iterdir() if path != out),
    }


def output_state(command: Command, out: Path, reference: AnyArray) -> str:
    """Return whether an output is absent, whole (it has the numbers of the reference) or damaged."""
    if not out.exists():
        return "absent"
    try:
        right = np.array_equal(command.read(out), reference, equal_nan=True)
    except (SpecjaxError, OSError):
        return "damaged"
    return "whole" if right else "damaged"
