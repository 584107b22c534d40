"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from specjax.errors import SpecjaxError

MARKERS = ("manifest.json", "table.json")  # of the folders that specjax writes: models, adapters and runs


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; on success it replaces ``path``, on an error it is removed.

    Parents are created. A kill in between leaves the old ``path`` as it was (and a hidden file beside it).
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
    """Yield an empty folder beside ``path``; on success it takes its place, on an error it is removed.

    A folder that is there is replaced only if it is empty, was written by specjax, as one of `MARKERS` shows,
    or holds nothing but files of the names in `known`. It cannot be replaced in one step, so it is first set
    aside as ``previous_folder(path)``. A kill between the two renames leaves it there, and readers go through
    `recover_folder`, which puts it back.

    Raises:
        SpecjaxError: the folder holds something else; it is left as it is.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    if path.exists() and not _is_ours(path, known):
        raise SpecjaxError(f"{path} exists and is not a folder that specjax wrote; it is left as it is")
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


def _is_ours(path: Path, known: Collection[str]) -> bool:
    """Whether replacing a folder loses nothing but what specjax wrote."""
    if not path.is_dir():
        return False
    return any((path / name).is_file() for name in MARKERS) or all(
        file.name in known and file.is_file() for file in path.iterdir()
    )


def previous_folder(path: Path) -> Path:
    """Where `atomic_folder` sets the old folder aside while it puts the new one in place."""
    return path.with_name(f".{path.name}.previous")


def recover_folder(path: str | Path) -> None:
    """Put the old folder back if a writer was killed between its two renames; drop it if both exist."""
    path = Path(path).resolve()
    if not path.name or not previous_folder(path).is_dir():
        return
    previous = previous_folder(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        os.rename(previous, path)


def _sync(path: Path) -> None:
    """Force a file's bytes to disk, so that the rename never points to an empty file after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
