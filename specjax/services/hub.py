"""Repositories of the Hugging Face hub: their files, downloaded and checked, and new commits.

Models and adapters on the hub are read by `specjax.checkpoints`; this is everything else.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from specjax.checkpoints.hub import check_repository, hub_endpoint, hub_errors
from specjax.checkpoints.tensor_file import sha256_of
from specjax.errors import ConfigError, DownloadError

Kind = Literal["model", "dataset"]

_GIT_FILES = (".gitattributes", ".gitignore")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file that is to be fetched.

    Attributes:
        name: its path in the repository.
        get: downloads it, or finds it on disk, and returns its path.
        check: returns whether a file is the published one, as far as its hash is known.
        size: in bytes; None if it is not known.
    """

    name: str
    get: Callable[[], Path]
    check: Callable[[Path], bool] = lambda _: True
    size: int | None = None

    def fetch(self) -> Path:
        """Download and check the file, and return its path.

        Raises:
            DownloadError: it cannot be downloaded, or is not the file that the hub announces.
        """
        path = self.get()
        if not self.check(path):
            raise DownloadError(
                f"{self.name} is not the file that the hub announces: {path} has another hash"
            )
        return path


def list_files(
    repository: str,
    *,
    kind: Kind = "model",
    revision: str | None = None,
    endpoint: str | None = None,
    local: Path | None = None,
) -> list[RemoteFile]:
    """List the files of a repository at one commit, by name.

    Args:
        repository: "owner/name".
        kind: whether it holds a model or a data set.
        revision: branch, tag or commit.
        endpoint: address of the hub; else $HF_ENDPOINT, else the public one.
        local: folder to download to, under the names of the files, instead of the cache of huggingface_hub.

    Raises:
        DownloadError: huggingface_hub is not installed, or there is no such repository or no network.
    """
    endpoint = endpoint or hub_endpoint()
    with hub_errors(repository):
        from huggingface_hub import HfApi

        info: Any = HfApi(endpoint=endpoint).repo_info(
            repository, repo_type=kind, revision=revision, files_metadata=True
        )
    get = partial(_download, repository, info.sha, kind, endpoint, local)
    return [
        RemoteFile(
            name=file.rfilename,
            get=partial(get, file.rfilename),
            check=partial(_has_hash, file.lfs.sha256 if file.lfs else None, file.blob_id),
            size=file.size,
        )
        for file in sorted(info.siblings or [], key=lambda file: file.rfilename)
        if file.rfilename not in _GIT_FILES
    ]


def _download(
    repository: str, commit: str, kind: Kind, endpoint: str | None, local: Path | None, name: str
) -> Path:
    with hub_errors(f"{repository}/{name}"):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            repository, name, revision=commit, repo_type=kind, endpoint=endpoint, local_dir=local
        )
        return Path(path)


def matching(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """Return the files whose names match one of the shell patterns; all of them without patterns."""
    return [file for file in files if not patterns or any(fnmatchcase(file.name, p) for p in patterns)]


def below(folder: Path, name: str) -> Path:
    """Return the place of a file of a repository below a folder.

    Raises:
        DownloadError: the name leads outside the folder.
    """
    parts = PurePosixPath(name).parts
    if any(part in ("/", "..") or "\\" in part for part in parts):
        raise DownloadError(f"the repository has a file named {name!r}, which leads outside the folder")
    return folder.joinpath(*parts)


def _has_hash(sha256: str | None, blob_id: str | None, path: Path) -> bool:
    """Compare a file with its SHA-256 or, if it is stored in git itself, with its blob id."""
    if sha256 is not None:
        return sha256_of(path) == sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob_id


def push_files(
    repository: str,
    files: Mapping[str, Path | bytes],
    *,
    replaces: Callable[[str], bool],
    message: str,
    private: bool = False,
) -> str:
    """Put files into a model repository in one commit, and return the commit.

    The repository is made if it does not exist. All files appear together or not at all.

    Args:
        repository: "owner/name".
        files: path or content by their names in the repository.
        replaces: whether an earlier file of this name is one of ours; those that are not pushed again are
            deleted. A repository that has files, but none of ours, is left alone.
        message: of the commit.
        private: make the repository private; one that exists keeps its visibility.

    Raises:
        ConfigError: the repository exists, and is not ours, or is public although `private` was asked for.
        DownloadError: huggingface_hub is not installed, there is no network, or the hub refuses access.
    """
    check_repository(repository)
    with hub_errors(repository, "push to {} on"):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(endpoint=hub_endpoint())
        info = _existing(api, repository)
        if info is None:
            api.create_repo(repository, private=private)
            info = api.model_info(repository)
        names = [file.rfilename for file in info.siblings or []]
        _check_existing(repository, names, bool(info.private), replaces, private)
        operations: list[Any] = [
            *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
            *(CommitOperationDelete(name) for name in names if replaces(name) and name not in files),
        ]
        done = api.create_commit(
            repository, operations=operations, commit_message=message, parent_commit=info.sha
        )
    return str(done.oid)


def _existing(api: Any, repository: str) -> Any:
    """Return the description of a repository, None if there is none that this user can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repository)
    except RepositoryNotFoundError:
        return None


def _check_existing(
    repository: str, names: Sequence[str], is_private: bool, replaces: Callable[[str], bool], private: bool
) -> None:
    """Raise ConfigError for a repository that must not be written."""
    others = [name for name in names if name not in (*_GIT_FILES, "README.md")]
    if others and not any(map(replaces, others)):
        raise ConfigError(
            f"{repository} exists and holds nothing of specjax ({others[0]}, ...); it is left unchanged"
        )
    if private and not is_private:
        raise ConfigError(
            f"{repository} exists and is public; make it private on the hub, or leave out --private"
        )
