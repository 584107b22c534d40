"""Atomic writing of files and folders: write next to the destination, then rename.

The name of what is being written says which process writes it. What a killed process leaves is removed by the
next one that writes to the same folder; what a running process or another machine writes is left alone.
"""

import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specjax.errors import SpecjaxError

MARKERS = ("manifest.json", "table.json")  # files that identify a model, adapter or run folder


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success it replaces `path`, on error it is removed.

    Parent folders are created. If the process is killed, the old `path` is unchanged, and a hidden temporary
    file remains next to it until `remove_leftovers` is called, as here for the first file in a folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_once(path.parent.absolute())
    descriptor, name = tempfile.mkstemp(prefix=_prefix(path.stem), suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # such as of a full disk
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
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
    remove_leftovers(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(path.name), dir=path.parent))
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


@contextmanager
def scratch_folder(parent: str | Path) -> Iterator[Path]:
    """Yield an empty folder below `parent`; it is removed at the end or, if the process is killed, later."""
    remove_leftovers(Path(parent))
    temporary = Path(tempfile.mkdtemp(prefix=_prefix("scratch"), dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it exists, in one step: if the process is killed, it is whole or no longer there.

    It is renamed first; `remove_leftovers` removes what a killed process leaves of it.
    """
    if not path.is_dir():
        return
    try:
        removed = tempfile.mkdtemp(prefix=_prefix(path.name), dir=path.parent)
        os.rename(path, removed)
    except OSError:  # then file by file
        shutil.rmtree(path, ignore_errors=True)
    else:
        shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that no longer run were writing in a folder."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(".")]
    except OSError:
        return
    for name in names:
        owner = _OWNED.search(name)
        if owner is None or owner[1] != _machine() or _runs(int(owner[2]), owner[3]):
            continue
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


_OWNED = re.compile(r"^\..*-([0-9a-f]{8})\.(\d+)\.(\d+)\.[a-z0-9_]{8}(\.[^.]*)?$")
_NAME = 100  # characters of a name that are kept, so that the temporary name is not too long
_cleaned: set[Path] = (
    set()
)  # folders of files; those of the parts of a run have too many to be listed each time


def _remove_leftovers_once(folder: Path) -> None:
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_leftovers(folder)


def _prefix(name: str) -> str:
    """Return the beginning of a temporary name, which says which process it belongs to."""
    return f".{name[:_NAME]}-{_machine()}.{os.getpid()}.{_started(os.getpid()) or 0}."


@functools.cache
def _machine() -> str:
    """Return a name of this machine and, in a container, of its space of process numbers."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _runs(process: int, started: str) -> bool:
    """Return whether a process runs; another one may have its number, but not its time of start."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        pass
    now = _started(process)
    return now is None or started == "0" or now == started


def _started(process: int) -> str | None:
    """Return when a process was started, in ticks since the machine was; None where that is not known."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def check_folder(path: str | Path, *, known: Collection[str] = ()) -> None:
    """Check that `atomic_folder` may write a folder, before work that would be lost; create its parents.

    Raises:
        SpecjaxError: The folder has other contents, which are not changed, or its parent cannot be written.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_writable(path.parent)
    recover_folder(path)
    if path.exists() and not _is_ours(path, known):
        raise SpecjaxError(f"{path} exists and was not written by specjax; it is left unchanged")


def _check_writable(folder: Path) -> None:
    """Raise SpecjaxError if nothing can be made in a folder; permissions do not tell, as on a full disk."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_prefix("trial"), dir=folder))
    except OSError as error:
        raise SpecjaxError(f"{folder} cannot be written: {error.strerror}") from None


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
