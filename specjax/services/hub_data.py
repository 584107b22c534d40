"""Fetch the files of a data set on the Hugging Face hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from specjax.cache import cache_folder
from specjax.checkpoints.hub import check_repository
from specjax.errors import ConfigError, DownloadError, SpecjaxError
from specjax.plurals import counted
from specjax.progress import Say, say
from specjax.services.hub import RemoteFile, below, list_files, matching
from specjax.surveys.registry import SURVEYS, recognise

_PARTS = ".download"  # folder of what is being downloaded, within the folder of the data set


def fetch_data(
    repository: str,
    out: Path | None = None,
    *,
    only: Sequence[str] = (),
    revision: str | None = None,
    endpoint: str | None = None,
    say: Say = say,
) -> Path:
    """Download files of a data set, check them, and report what specjax reads of them.

    Args:
        repository: "owner/name".
        out: folder for the files, under their names in the repository; by default `data/OWNER--NAME` in the
            cache. Files that are there already and intact are kept.
        only: shell patterns on names, such as "*.h5"; all files if empty.
        revision: branch, tag or commit of the repository.
        endpoint: address of the hub; else $HF_ENDPOINT, else the public one.
        say: takes lines of progress.

    Returns:
        The folder.

    Raises:
        DownloadError: huggingface_hub is not installed, there is no such data set or no network, a file
            differs from the one that the hub announces, or the disk is too small.
        ConfigError: no file matches.
    """
    repository = check_repository(repository)
    out = Path(out) if out is not None else cache_folder() / "data" / repository.replace("/", "--")
    parts = out / _PARTS
    listed = list_files(repository, kind="dataset", revision=revision, endpoint=endpoint, local=parts)
    files = matching(listed, only)
    if not files:
        raise ConfigError(f"{repository} has no file {' or '.join(only) or 'at all'}")
    out.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not _is_there(file, below(out, file.name))]
    _check_space(missing, out, say)
    for file in missing:
        target = below(out, file.name)
        path = file.fetch()
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(parts, ignore_errors=True)
    for file in files:
        say(f"{file.name}: {_kind_of(below(out, file.name))}")
    return out


def _is_there(file: RemoteFile, path: Path) -> bool:
    return path.is_file() and file.check(path)


def _check_space(files: Sequence[RemoteFile], out: Path, say: Say) -> None:
    """Report how much is downloaded; raise DownloadError if the disk cannot hold it."""
    needed, free = sum(file.size or 0 for file in files), shutil.disk_usage(out).free
    if needed > free:
        raise DownloadError(
            f"{needed / 1e9:.1f} GB are to be downloaded, but {out} has {free / 1e9:.1f} GB left"
        )
    if files:
        say(f"{counted(len(files), 'file')}, {needed / 1e6:.1f} MB")


def _kind_of(path: Path) -> str:
    """Say what specjax takes a file for."""
    try:
        return SURVEYS[recognise(path)].description
    except SpecjaxError:
        return "not recognised as spectra"
