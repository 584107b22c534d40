"""Fetch the published SpecCLIP files from the Hugging Face hub or a folder, and convert them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from specjax.cache import cache_folder
from specjax.checkpoints import load_model
from specjax.checkpoints.tensor_file import sha256_of
from specjax.errors import ConfigError, ModelError
from specjax.progress import Say, say
from specjax.services.hub import RemoteFile, below, list_files, matching

Convert = Callable[[Path, Path], Mapping[str, Mapping[str, str]]]
"""Converts a file of weights to a model folder and returns its record: {file: {"network": name, ...}}.

It raises ModelError for a file that is not one of the published networks.
"""

ConvertHead = Callable[..., object]
"""Converts a label head, (path, folder, *, stats, labels, head_name), as `checkpoints_convert.convert`."""

REPOSITORY = "astroshawn/SpecCLIP"
TEST_DATA = "astroshawn/SpecCLIP-TestData-Small"
"""The authors' data set of pairs of LAMOST and Gaia XP spectra, CC-BY-4.0."""

_SUFFIXES = (".ckpt", ".pt")


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
    weights = [file for file in _published(source, revision, endpoint) if file.name.endswith(_SUFFIXES)]
    files = matching(weights, only)
    if not files:
        raise ConfigError(f"{source} has no file {' or '.join(only) or 'of PyTorch weights'}")
    converted = [file for file in files if _fetch(file, out, convert, say)]
    if not converted:
        raise ModelError(f"none of the {len(files)} files of {source} is a published SpecCLIP network")
    return out


@dataclass(frozen=True, kw_only=True)
class PublishedHead:
    """A published label head of one survey, with the statistics of its features.

    Attributes:
        label: what it predicts, as specjax names it.
        survey: whose vectors it reads, "lamost" or "gaia_xp".
        model: the SpecCLIP model that makes these vectors, a key of `MODELS`.
        file: its path in the repository.
        stats: the path of the statistics.
    """

    label: str
    survey: str
    model: str
    file: str
    stats: str


MODELS = {
    "pr": "specclip/specclip_model_predrecon_mlp.ckpt",
    "split": "specclip/specclip_model_split_mlp.ckpt",
}
"""Published models by the names that the publication gives them."""


def _head(label: str, survey: str, model: str, name: str, stats: str | None = None) -> PublishedHead:
    tower = {"lamost": "lrs", "gaia_xp": "xp"}[survey]
    return PublishedHead(
        label=label,
        survey=survey,
        model=model,
        file=f"downstream_models/{tower}/mlp/{name}.pt",
        stats=f"stats/{tower}/{stats or name}_mean_std.json",
    )


HEADS = (
    _head("fe_h", "lamost", "split", "feh"),
    _head("fe_h", "gaia_xp", "pr", "feh", "FeH"),
    *(
        _head(label, survey, "pr", name)
        for label, name in (("alpha_fe", "afe"), ("c_fe", "cfe"), ("n_fe", "nfe"), ("e_bp_rp", "ebprp"))
        for survey in ("lamost", "gaia_xp")
    ),
)
"""Label heads of both surveys for the same labels, each with the model that it was published for."""


def fetch_heads(
    source: str = REPOSITORY,
    out: Path | None = None,
    *,
    convert: ConvertHead,
    heads: Sequence[PublishedHead] = HEADS,
    revision: str | None = None,
    endpoint: str | None = None,
    say: Say = say,
) -> dict[PublishedHead, Path]:
    """Download published label heads with their statistics, and convert each to a model folder of its own.

    Args:
        source: as in `fetch_specclip`.
        out: folder for the model folders; by default `specclip/heads` in the cache.
        convert: converts one file, as `checkpoints_convert.convert` does.
        heads: the heads that are wanted; those that the source does not have are reported and left out.
        revision: branch, tag or commit of the repository.
        endpoint: address of the hub; else $HF_ENDPOINT, else the public one.
        say: takes lines of progress.

    Returns:
        The folders, by head.

    Raises:
        DownloadError: as `fetch_specclip`.
        ModelError: a file is not a label head, or does not fit its statistics.
    """
    out = Path(out) if out is not None else cache_folder() / "specclip" / "heads"
    files = {file.name: file for file in _published(source, revision, endpoint)}
    found = {}
    for head in heads:
        if missing := [name for name in (head.file, head.stats) if name not in files]:
            say(f"{head.label} from {head.survey}: left out, for {source} has no {missing[0]}")
            continue
        weights, stats = (files[name].fetch() for name in (head.file, head.stats))
        target = _target(out, head.file)
        if not _is_converted(target, weights):
            convert(weights, target, stats=stats, labels=[head.label], head_name="mlp2")
        found[head] = target
    return found


def _fetch(file: RemoteFile, out: Path, convert: Convert, say: Say) -> bool:
    """Fetch, check and convert one file; return whether its model folder exists now."""
    target = _target(out, file.name)
    say(f"{file.name}: fetching")
    path = file.fetch()
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
    return below(out, name).with_suffix("")


def _is_converted(target: Path, source: Path) -> bool:
    """Return whether `target` is an intact model folder that was made from this very file."""
    try:
        sources = load_model(target).config.get("sources", {})
    except ModelError:
        return False
    return sha256_of(source) in [record.get("sha256") for record in sources.values()]


def _published(source: str, revision: str | None, endpoint: str | None) -> list[RemoteFile]:
    """List all files of a folder, or of a repository at one commit."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return list_files(source, revision=revision, endpoint=endpoint)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [RemoteFile(name=path.relative_to(folder).as_posix(), get=partial(Path, path)) for path in paths]
