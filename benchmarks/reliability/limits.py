"""Machines that lack something: space on the disk, permissions, a home folder or memory.

Permissions do not bind root, so that commands that lack them run without that privilege.
"""

import ctypes
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

from benchmarks.reliability import forks
from benchmarks.reliability.commands import Command
from specjax.errors import SpecjaxError
from specjax.typing import AnyArray

FILE_SIZE = 8 << 10
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2  # the privileges of root over permissions, see capabilities(7)
_DROP_FROM_BOUNDING_SET = 24  # of prctl(2)
_HOMES = ("HOME", "SPECJAX_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """What a process lacks.

    Attributes:
        home: its home folder, without a cache folder; "" for no home folder but a cache folder. None leaves
            the environment as it is.
        file_size: bytes that no file may exceed.
        memory: bytes of address space.
        bound: permissions bind it even if its user is root.
        writable: the folder of the output may be written.
    """

    home: str | None = None
    file_size: int | None = None
    memory: int | None = None
    bound: bool = False
    writable: bool = True

    def take(self) -> None:
        """Take it away from this process."""
        if self.file_size is not None:  # Python turns the signal into an error
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size,) * 2)
        if self.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (self.memory,) * 2)
        if self.bound:
            _drop_privileges()

    def environment(self) -> Mapping[str, str]:
        """Return the environment without the home folder."""
        kept = {name: value for name, value in os.environ.items() if name not in _HOMES}
        return kept | ({"HOME": self.home} if self.home else {"SPECJAX_CACHE": os.environ["SPECJAX_CACHE"]})


def _drop_privileges() -> None:
    """Let permissions bind this process and the program that it executes, if its user is root."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for privilege in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
        if libc.prctl(_DROP_FROM_BOUNDING_SET, privilege, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the privileges of root cannot be dropped")
    version, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(version, none):
        raise OSError(ctypes.get_errno(), "the privileges of root cannot be dropped")


def make_limits(place: Path, megabytes: int) -> dict[str, Limit]:
    """Return the limits, by what is lacking; `place` gets the home folder that cannot be written."""
    closed = place / "closed"
    closed.mkdir(parents=True, exist_ok=True)
    closed.chmod(0o555)
    return {
        "space on the disk": Limit(file_size=FILE_SIZE),
        "a folder that can be written": Limit(bound=True, writable=False),
        f"more than {megabytes} MB of memory": Limit(memory=megabytes << 20),
        "HOME": Limit(home=""),
        "a HOME that can be written": Limit(home=str(closed), bound=True),
    }


def limit_command(
    command: Command, place: Path, limit: Limit, reference: AnyArray, context: Any
) -> dict[str, Any]:
    """Run a command under a limit and say how it ends.

    Returns:
        The exit status, the last line of the errors, the number of warnings, whether the last line is of
        specjax, whether there was a traceback, the state of the output, and what is left beside it.
    """
    out, errors = place / "limited" / command.out, place / "errors.txt"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    out.parent.chmod(0o755 if limit.writable else 0o555)
    if limit.home is None:
        process = forks.start(context, command.filled(out), errors, forks.Conditions(before=limit.take))
        process.join()
        return _ending(command, process.exitcode or 0, errors.read_text(), out, reference)
    done = subprocess.run(  # a new interpreter, as packages look for the home folder on import
        [sys.executable, "-m", "specjax", *command.filled(out)],
        env=limit.environment(),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=limit.take,
        check=False,
    )
    return _ending(command, done.returncode, done.stderr, out, reference)


def _ending(command: Command, status: int, errors: str, out: Path, reference: AnyArray) -> dict[str, Any]:
    lines = [line for line in errors.splitlines() if line.strip()]
    return {
        "status": status,
        "last": lines[-1][:300] if lines else "",
        "warnings": sum("warn" in line.lower() for line in lines),
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
