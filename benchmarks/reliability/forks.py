"""Commands of specjax in processes that are forked after the imports, so that their work starts at once.

A process of its own (the fork server of multiprocessing) imports specjax once. In the processes that it
forks, a command is what `specjax` runs, with the same exit status.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

IMPORTS = (
    "specjax.cli",
    "specjax.adapt.survey",
    "specjax.pipeline.predict",
    "specjax.prepare",
    "specjax.pretrain.from_files",
    "specjax.pretrain.stream",
    "specjax.report.calibration",
    "orbax.checkpoint",
    "h5py",
)
"""What the server imports; no device of JAX is initialised by it, and no thread of specjax started."""

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What happens in a process before and while a command runs.

    Attributes:
        before: is called before it.
        watched: a folder; the changes of files in it are counted.
        changes: a file that says how many there were, one character each.
        kill_at: the process ends itself with SIGKILL before the change with this number, from 0.
    """

    before: Callable[[], None] | None = None
    watched: Path | None = None
    changes: Path | None = None
    kill_at: int | None = None


@contextmanager
def forking(environment: Mapping[str, str]) -> Iterator[Any]:
    """Yield a context of multiprocessing whose server runs with an environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)  # the server starts with the first process and keeps it
    try:
        yield context
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(
    context: Any, words: Sequence[str], errors: Path, conditions: Conditions | None = None
) -> BaseProcess:
    """Start a command, whose errors and progress go to a file."""
    process: BaseProcess = context.Process(target=_run, args=(words, errors, conditions or Conditions()))
    process.start()
    return process


def use_features(folder: Path, rounds: int) -> None:
    """Read and write the same features again and again; exit with status 1 if others are read."""
    import numpy as np

    from specjax.adapt.feature_cache import _read, _write
    from specjax.foundation import BackboneFeatures

    path, right = folder / "features.npz", np.arange(300_000, dtype=np.float32)
    for _ in range(rounds):
        found = _read(path)
        if found is not None and not all(np.array_equal(array, right) for array in found):
            sys.exit("wrong features")
        _write(path, BackboneFeatures(right, right), 10 * right.nbytes)


def _run(words: Sequence[str], errors: Path, conditions: Conditions) -> None:
    """Run a command in this process and exit with its status."""
    from specjax.cli import main

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if conditions.before is not None:
        conditions.before()
    if conditions.watched is not None and conditions.changes is not None:
        _watch(conditions.watched, conditions.changes, conditions.kill_at)
    sys.exit(main(words))


def _watch(folder: Path, changes: Path, kill_at: int | None) -> None:
    """Count the changes of files below a folder that Python makes, and end the process before one of them."""
    record = os.open(changes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    count = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _CHANGES or not _changes(event, arguments, str(folder)):
            return
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        os.write(record, b".")

    sys.addaudithook(look)


def _changes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Return whether an event of Python's audit changes a file below a folder."""
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
        return False
    if not isinstance(arguments[0], str | bytes | os.PathLike):
        return False  # a file that is open already
    name = os.fsdecode(arguments[0])
    # Removing a tree names what is in it relative to its folders.
    return name.startswith(folder) or (event in ("os.remove", "os.rmdir") and not os.path.isabs(name))
