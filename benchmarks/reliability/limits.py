"""Machines that lack something: space on the disk, permissions, a home folder or memory."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reliability.commands import Command, environment_of, start

_ULIMIT = ("bash", "-c")


def limit_command(command: Command, place: Path, megabytes: int) -> dict[str, Any]:
    """Run a command under each limit and say how it ends.

    Returns:
        For each limit the exit status, the last line of the errors, whether it was one line of specjax, and
        what is left of the output.
    """
    environment = environment_of(place)
    homeless = {name: value for name, value in environment.items() if name not in ("HOME", "SPECJAX_CACHE")}
    out = place / "limits" / command.out
    runs: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
        # In blocks of 1 kB; Python turns the signal into an error.
        "full disk": (environment, (*_ULIMIT, 'ulimit -f 8; exec "$@"', "bash")),
        "no home": (homeless, ()),
        f"{megabytes} MB of memory": (
            environment,
            (*_ULIMIT, f'ulimit -v {megabytes * 1024}; exec "$@"', "bash"),
        ),
    }
    found = {}
    for name, (given, prefix) in runs.items():
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        with start(command.words, out, given, prefix) as process:
            _, errors = process.communicate()
        found[name] = _ending(process.returncode, errors, out)
    return found


def _ending(status: int, errors: str, out: Path) -> dict[str, Any]:
    lines = [line for line in errors.splitlines() if line.strip()]
    left = sorted(path.name for path in out.parent.iterdir() if path != out)
    return {
        "status": status,
        "last": lines[-1][:300] if lines else "",
        "clear": status == 0 or (bool(lines) and lines[-1].startswith("specjax: error:")),
        "traceback": any(line.startswith("Traceback") for line in lines),
        "output": out.exists(),
        "left": left,
    }
