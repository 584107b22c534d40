"""Fetch the published SpecCLIP files from the Hugging Face hub or a folder, and convert them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from specjax.cache import cache_folder
from specjax.checkpoints import load_model
from specjax.checkpoints.tensor_file import sha256_of
from specjax.errors import ConfigError, DownloadError, ModelError
from specjax.progress import Say, say

Convert = Callable[[Path, Path], Mapping[str, Mapping[str, str]]]
"""Converts a file of weights to a model folder and returns its record: {file: {"network": name, ...}}.

It raises ModelError for a file that is not one of the published networks.
"""

REPOSITORY = "astroshawn/SpecCLIP"
_SUFFIXES = (".ckpt", ".pt")


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file of weights.

    Attributes:
        name: its path in the repository.
        get: downloads it, or finds it on disk, and returns its path.
        check: returns whether a file is the published one, as far as its hash is known.
    """

    name: str
    get: Callable[[], Path]
    check: Callable[[Path], bool] = lambda _: True


def fetch_specclip(
    source: str = REPOSITORY,
    out: Path | None = None,
    *,
    convert: Convert,
    only: Sequence[str] = (),
    revision: str | None = None,
    endpoint: str | None = None,
    say: Say = say,
) -> Path:
    """Download the published files, check their hashes and convert all that are recognised.

    Args:
        source: a repository of the hub, or a folder with its files.
        out: folder for the model folders; by default `specclip` in the cache. A file encoders/x.ckpt becomes
            the model folder encoders/x. Files that were converted before are not converted again.
        convert: converts one file, as `checkpoints_convert.convert` does.
        only: shell patterns on names, such as "*_mlp.ckpt"; all files if empty.
        revision: branch, tag or commit of the repository.
        endpoint: address of the hub; else $HF_ENDPOINT, else the public one.
        say: takes lines of progress.

    Returns:
        The folder of the model folders.

    Raises:
        DownloadError: huggingface_hub is not installed, there is no such repository or no network, or a file
            differs from the one that the hub announces.
        ConfigError: no file matches.
        ModelError: none of the files is a published network.
    """
    out = Path(out) if out is not None else cache_folder() / "specclip"
    folder = Path(source).expanduser()
    files = _in_folder(folder) if folder.is_dir() else _on_hub(source, revision, endpoint)
    files = [file for file in files if not only or any(fnmatchcase(file.name, p) for p in only)]
    if not files:
        raise ConfigError(f"{source} has no file {' or '.join(only) or 'of PyTorch weights'}")
    converted = [file for file in files if _fetch(file, out, convert, say)]
    if not converted:
        raise ModelError(f"none of the {len(files)} files of {source} is a published SpecCLIP network")
    return out


def _fetch(file: PublishedFile, out: Path, convert: Convert, say: Say) -> bool:
    """Fetch, check and convert one file; return whether its model folder exists now."""
    target = _target(out, file.name)
    say(f"{file.name}: fetching")
    path = file.get()
    if not file.check(path):
        raise DownloadError(f"{file.name} is not the file that the hub announces: {path} has another hash")
    if _is_converted(target, path):
        say(f"{file.name}: already in {target}")
        return True
    try:
        record = convert(path, target)
    except ModelError as error:
        say(f"{file.name}: left out: {error}")
        return False
    say(f"{file.name}: {next(iter(record.values()))['network']}, in {target}")
    return True


def _target(out: Path, name: str) -> Path:
    """Return the folder below `out` for a file of the repository."""
    parts = PurePosixPath(name).with_suffix("").parts
    if any(part in ("/", "..") or "\\" in part for part in parts):
        raise DownloadError(f"the repository has a file named {name!r}, which leads outside the folder")
    return out.joinpath(*parts)


def _is_converted(target: Path, source: Path) -> bool:
    """Return whether `target` is an intact model folder that was made from this very file."""
    try:
        sources = load_model(target).config.get("sources", {})
    except ModelError:
        return False
    return sha256_of(source) in [record.get("sha256") for record in sources.values()]


def _in_folder(folder: Path) -> list[PublishedFile]:
    """List the files of weights below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    return [
        PublishedFile(name=path.relative_to(folder).as_posix(), get=partial(Path, path)) for path in paths
    ]


def _on_hub(repository: str, revision: str | None, endpoint: str | None) -> list[PublishedFile]:
    """List the files of weights of a repository, at one commit."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise DownloadError(
            f"there is no folder {repository}, and the hub needs huggingface_hub: pip install 'specjax[hub]'"
        ) from None
    with _hub_errors(repository):
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True)

    def download(name: str) -> Path:
        with _hub_errors(f"{repository}/{name}"):
            return Path(hf_hub_download(repository, name, revision=info.sha, endpoint=endpoint))

    return [
        PublishedFile(
            name=file.rfilename,
            get=partial(download, file.rfilename),
            check=partial(_has_hash, file.lfs.sha256 if file.lfs else None, file.blob_id),
        )
        for file in sorted(info.siblings or [], key=lambda file: file.rfilename)
        if file.rfilename.endswith(_SUFFIXES)
    ]


def _has_hash(sha256: str | None, blob_id: str | None, path: Path) -> bool:
    """Compare a file with its SHA-256 or, if it is stored in git itself, with its blob id."""
    if sha256 is not None:
        return sha256_of(path) == sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob_id


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Convert what huggingface_hub raises to one line."""
    try:
        yield
    except Exception as error:  # its own errors, those of httpx, OSError, ValueError for an invalid name
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DownloadError(f"cannot fetch {what} from the hub: {lines[0][:200]}") from None
