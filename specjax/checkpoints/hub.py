"""Folders on the Hugging Face hub: addresses such as hf://owner/name, and their files in the cache.

What was fetched before is used without a network. The files are kept in `hub` in the cache folder, in the
layout of huggingface_hub.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from specjax.cache import cache_folder
from specjax.errors import ConfigError, DownloadError, SpecjaxError

PREFIX = "hf://"
NEEDED = "it needs huggingface_hub, pip install 'specjax[hub]'"

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_ADDRESS = re.compile(
    f"hf:/{{1,2}}(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[^/@]+))?(?P<folder>(?:/[^/]+)*)/?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A folder of a repository.

    Attributes:
        repository: "owner/name".
        revision: branch, tag or commit; None for the main branch.
        folder: path of the folder in the repository, "" for the repository itself.
    """

    repository: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, address: str | Path) -> "HubAddress | None":
        """Read hf://OWNER/NAME[@REVISION][/FOLDER]; None for anything without the prefix hf:.

        A slash in a revision is written %2F. The form hf:/OWNER/NAME that `pathlib` makes is the same.

        Raises:
            ConfigError: the rest is not an address.
        """
        text = str(address)
        if not is_address(text):
            return None
        found = _ADDRESS.fullmatch(text)
        if found is None or ".." in found["folder"].split("/"):
            raise ConfigError(f"{text} is not an address of the form hf://OWNER/NAME[@REVISION][/FOLDER]")
        revision = found["revision"]
        return cls(
            repository=found["repository"],
            revision=None if revision is None else unquote(revision),
            folder=found["folder"].strip("/"),
        )

    def __str__(self) -> str:
        revision = "" if self.revision is None else "@" + self.revision.replace("/", "%2F")
        return PREFIX + self.repository + revision + (f"/{self.folder}" if self.folder else "")

    def fetch(self, names: Sequence[str], *, again: bool = False) -> Path:
        """Return the folder in the cache with these files of one commit, downloaded if they are not there.

        Args:
            names: files of the folder. The first one decides the commit, for a branch the latest one.
            again: download all of them anew.

        Raises:
            DownloadError: huggingface_hub is missing, there is no such repository, revision or file, or there
                is no network and the file was not fetched before.
        """
        first = self._fetch(names[0], self.revision, again)
        place = first.parents[1 + self.folder.count("/")] if self.folder else first.parent
        for name in names[1:]:
            self._fetch(name, place.name, again)  # the snapshot is named after its commit
        return first.parent

    def _fetch(self, name: str, revision: str | None, again: bool) -> Path:
        with hub_errors(str(self)):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

            try:
                path = hf_hub_download(
                    self.repository,
                    name,
                    subfolder=self.folder or None,
                    revision=revision,
                    cache_dir=hub_cache(),
                    endpoint=hub_endpoint(),
                    force_download=again,
                )
            except LocalEntryNotFoundError as error:
                reason = _reason(error.__cause__ or error)
                raise DownloadError(
                    f"cannot fetch {self} from the hub, and it was not fetched before: {reason}"
                ) from None
            except EntryNotFoundError:
                raise DownloadError(
                    f"{self} is not a specjax folder: it has no {name}{self._hint()}"
                ) from None
        return Path(path)

    def _hint(self) -> str:
        """Name the folders of the repository that hold a model or an adapter, if they can be listed."""
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=hub_endpoint()).model_info(self.repository, revision=self.revision)
        except Exception:  # the hint is not worth another error
            return ""
        files = [file.rfilename for file in info.siblings or []]
        folders = [file.rpartition("/")[0] for file in files if file.endswith("/manifest.json")]
        if not folders:
            return ""
        first = HubAddress(repository=self.repository, revision=self.revision, folder=folders[0])
        return f"; choose one of its {len(folders)} folders, such as {first}"


def is_address(text: str | Path) -> bool:
    """Return whether a text means a place on the hub; its form may still be wrong."""
    return str(text).startswith("hf:")


def check_repository(name: str) -> str:
    """Return the name of a repository if it has the form OWNER/NAME.

    Raises:
        ConfigError: it has another form.
    """
    plain = name.removeprefix(PREFIX)
    if not _REPOSITORY.fullmatch(plain):
        raise ConfigError(f"{name!r} is not the name of a repository, which has the form OWNER/NAME")
    return plain


def hub_cache() -> Path:
    """Return the folder of files from the hub."""
    return cache_folder() / "hub"


def hub_endpoint() -> str | None:
    """Return $HF_ENDPOINT, another address of the hub, or None for that of huggingface_hub."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def hub_errors(what: str, doing: str = "fetch {} from") -> Iterator[None]:
    """Convert what huggingface_hub raises, and its absence, to one line.

    Args:
        what: what is fetched or sent.
        doing: what is done with it, with {} in its place.

    Raises:
        DownloadError: something of huggingface_hub was raised; SpecjaxErrors pass.
    """
    try:
        yield
    except SpecjaxError:
        raise
    except ImportError as error:
        raise DownloadError(f"cannot {doing.format(what)} the hub: {NEEDED} ({error})") from None
    except Exception as error:  # its own errors, those of its HTTP client, OSError, ValueError
        raise DownloadError(f"cannot {doing.format(what)} the hub: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return one line on an error, or on its cause where it only repeats that something failed."""
    if isinstance(error, ValueError | RuntimeError) and error.__cause__ is not None:
        return _reason(error.__cause__)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return "its owner grants access on request only, and you are not logged in as one who has it"
    if "RepositoryNotFoundError" in kinds:
        return "there is no such repository, or it is private and needs `hf auth login`"
    if "RevisionNotFoundError" in kinds:
        return "the repository has no such revision"
    if "LocalTokenNotFoundError" in kinds:
        return "it needs a token: `hf auth login`"
    if kinds & {"ConnectError", "ConnectionError", "TimeoutException", "OfflineModeIsEnabled", "Timeout"}:
        return "there is no connection to it"
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) in (401, 403):
        return "it refuses access: check `hf auth whoami` and the rights of its token"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].strip()[:200]
