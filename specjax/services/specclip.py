"""The published SpecCLIP files, from the Hugging Face hub or a folder, as model folders in the cache."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from specjax.errors import ConfigError, DownloadError, ModelError
from specjax.progress import Say

REPOSITORY = "astroshawn/SpecCLIP"
_SUFFIXES = (".ckpt", ".pt")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of weights: its name in the repository, how to get it, and its hash where that is known."""

    name: str
    get: Callable[[], Path]
    check: Callable[[Path], bool] = lambda _: True


def fetch_specclip(
    source: str = REPOSITORY,
    out: Path | None = None,
    *,
    only: Sequence[str] = (),
    revision: str | None = None,
    endpoint: str | None = None,
    say: Say = print,
) -> Path:
    """Download the published files, check their hashes and convert every one that is recognised.

    Args:
        source: a repository of the hub, or a folder that holds the files.
        out: where the model folders go; `specclip` in the cache where None. A file encoders/x.ckpt becomes
            the model folder encoders/x. Files that were converted before are not converted again.
        only: shell patterns on names, such as "*_mlp.ckpt"; all files where there are none.
        revision: branch, tag or commit of the repository.
        endpoint: another address of the hub; also $HF_ENDPOINT.
        say: takes lines of progress.

    Returns:
        The folder of the model folders.

    Raises:
        DownloadError: no huggingface_hub, no such repository, no network, or a file that is not the one that
            the hub announces.
        ConfigError: nothing to fetch under these names.
        ModelError: none of the files is one of the published networks.
    """
    from specjax.cache import cache_folder

    out = Path(out) if out is not None else cache_folder() / "specclip"
    folder = Path(source).expanduser()
    files = _in_folder(folder) if folder.is_dir() else _on_hub(source, revision, endpoint)
    files = [file for file in files if not only or any(fnmatchcase(file.name, p) for p in only)]
    if not files:
        raise ConfigError(f"{source} holds no file {' or '.join(only) or 'of PyTorch weights'}")
    converted = [file for file in files if _convert(file, out, say)]
    if not converted:
        raise ModelError(f"none of the {len(files)} files of {source} is a published SpecCLIP network")
    return out


def _convert(file: Published, out: Path, say: Say) -> bool:
    """Fetch, check and convert one file; returns whether it is a model folder now."""
    from checkpoints_convert import convert

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
    """The folder for a name of the repository, below `out`."""
    parts = PurePosixPath(name).with_suffix("").parts
    if any(part in ("/", "..") or "\\" in part for part in parts):
        raise DownloadError(f"the repository has a file of the name {name!r}, which leads elsewhere")
    return out.joinpath(*parts)


def _is_converted(target: Path, source: Path) -> bool:
    """Whether a whole model folder of that very file is there."""
    from specjax.checkpoints import load_model
    from specjax.checkpoints.tensor_file import sha256_of

    try:
        sources = load_model(target).config.get("sources", {})
    except ModelError:
        return False
    return sha256_of(source) in [record.get("sha256") for record in sources.values()]


def _in_folder(folder: Path) -> list[Published]:
    """The files of weights below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    return [Published(name=path.relative_to(folder).as_posix(), get=partial(Path, path)) for path in paths]


def _on_hub(repository: str, revision: str | None, endpoint: str | None) -> list[Published]:
    """The files of weights of a repository, at one commit."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise DownloadError(
            f"there is no folder {repository}, and the hub needs huggingface_hub: pip install 'specjax[hub]'"
        ) from None
    with _hub_errors(repository):
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True)

    def published(name: str, check: Callable[[Path], bool]) -> Published:
        def get() -> Path:
            with _hub_errors(f"{repository}/{name}"):
                return Path(hf_hub_download(repository, name, revision=info.sha, endpoint=endpoint))

        return Published(name=name, get=get, check=check)

    files = sorted(info.siblings or [], key=lambda file: file.rfilename)
    return [
        published(file.rfilename, _announced(file.lfs.sha256 if file.lfs else None, file.blob_id))
        for file in files
        if file.rfilename.endswith(_SUFFIXES)
    ]


def _announced(sha256: str | None, blob_id: str | None) -> Callable[[Path], bool]:
    """Compare a file with its SHA-256 or, where it is kept in git itself, with the id of its blob."""
    from specjax.checkpoints.tensor_file import sha256_of

    def is_it(path: Path) -> bool:
        if sha256 is not None:
            return sha256_of(path) == sha256
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob_id

    return is_it


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line."""
    try:
        yield
    except Exception as error:  # of its own, of httpx, OSError, ValueError for a name that cannot be
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DownloadError(f"cannot fetch {what} from the hub: {lines[0][:200]}") from None
