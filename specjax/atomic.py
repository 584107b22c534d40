"""Atomic writing of files and folders: write next to the destination, then rename."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from specjax.errors import SpecjaxError

MARKERS = ("manifest.json", "table.json")  # files that identify a model, adapter or run folder


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success it replaces `path`, on error it is removed.

    Parent folders are created. If the process is killed, the old `path` is unchanged, and a hidden temporary
    file may remain next to it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, known: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces `path`, on error it is removed.

    An existing folder is replaced only if it is empty, was written by specjax (it contains one of `MARKERS`)
    or contains only files named in `known`. A folder cannot be replaced in one step, so the old one is first
    renamed to `previous_folder(path)`. If the process is killed between the two renames, `recover_folder`,
    which readers call first, restores it.

    Raises:
        SpecjaxError: The folder has other contents; they are not changed.
    """
    path = Path(path).resolve()
    check_folder(path, known=known)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():
            os.rename(path, previous_folder(path))
        os.rename(temporary, path)
        shutil.rmtree(previous_folder(path), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(path)


def check_folder(path: str | Path, *, known: Collection[str] = ()) -> None:
    """Check that `atomic_folder` may write a folder, before work that would be lost; create its parents.

    Raises:
        SpecjaxError: The folder has other contents; they are not changed.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    if path.exists() and not _is_ours(path, known):
        raise SpecjaxError(f"{path} exists and was not written by specjax; it is left unchanged")


def _is_ours(path: Path, known: Collection[str]) -> bool:
    """Return whether a folder contains nothing that specjax may not replace."""
    if not path.is_dir():
        return False
    return any((path / name).is_file() for name in MARKERS) or all(
        file.name in known and file.is_file() for file in path.iterdir()
    )


def previous_folder(path: Path) -> Path:
    """Return where `atomic_folder` keeps the old folder until the new one is in place."""
    return path.with_name(f".{path.name}.previous")


def recover_folder(path: str | Path) -> None:
    """Restore the old folder if a writer was killed between its renames; delete it if both exist."""
    path = Path(path).resolve()
    if not path.name or not previous_folder(path).is_dir():
        return
    previous = previous_folder(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        os.rename(previous, path)


def _sync(path: Path) -> None:
    """Flush a file to disk before it is renamed, so that a power failure cannot leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    """Return the file mode mask of the process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
