"""A folder that a download fills page by page and can resume after an interruption.

`query.json` records the query; a different query in the same folder is refused. Each page is one gzipped JSON
file that appears whole or not at all, and a page that is present is not fetched again.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from specjax.atomic import atomic_file, remove_leftovers
from specjax.errors import ConfigError, DownloadError
from specjax.progress import Say

QUERY, PAGES = "query.json", "pages"

Record = dict[str, Any]
"""One record of a service, {field: value}."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Records in the order of the requested ids, and why others were left out.

    Attributes:
        records: the usable records.
        left_out: {id: reason}.
        absent: number of ids that the service has no record of. If it has none of the page, the page is
            requested again by the next run.
    """

    records: list[Record]
    left_out: dict[str, str] = field(default_factory=dict)
    absent: int = 0


@dataclass(frozen=True, kw_only=True)
class DownloadFolder:
    """The folder of one query.

    Attributes:
        path: the folder.
        query: the query; written with the first response, so that a query that fails can be corrected.
        say: takes lines of progress.
    """

    path: Path
    query: Mapping[str, Any]
    say: Say

    @classmethod
    def open(cls, path: Path, query: Mapping[str, Any], say: Say) -> Self:
        """Open the folder of a query, or create it empty.

        Raises:
            ConfigError: the folder belongs to a different query, or holds something else.
            DownloadError: the folder cannot be written.
        """
        path = Path(path)
        query = json.loads(json.dumps(query))
        before = _load(path / QUERY)
        if before is None and path.exists() and (not path.is_dir() or _visible(path)):
            raise ConfigError(f"{path} holds something other than a download; it was not changed")
        if before is not None and before != query:
            changed = [key for key in {**before, **query} if before.get(key) != query.get(key)]
            changes = ", ".join(f"{key} was {before.get(key)}, now {query.get(key)}" for key in changed)
            raise ConfigError(f"{path} holds the result of a different query ({changes}); use another folder")
        with write_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / PAGES):
            remove_leftovers(folder)
        return cls(path=path, query=query, say=say)

    def store(self, path: Path, content: Any) -> None:
        """Write JSON, gzipped where the name ends in .gz, whole or not at all; NaN becomes null."""
        if path.name != QUERY and not (self.path / QUERY).exists():
            self.store(self.path / QUERY, self.query)
        try:
            text = json.dumps(content, allow_nan=False)
        except ValueError:
            text = json.dumps(_without_nan(content), allow_nan=False)
        data = text.encode()
        with write_errors(path), atomic_file(path) as temporary:
            temporary.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)

    def cached(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the content of the file `name`, which is made and stored if it is missing."""
        content = _load(self.path / name)
        if content is None:
            self.store(self.path / name, make())
            content = _load(self.path / name)
        return content

    def fetch(self, ids: Sequence[str], size: int, fetch_page: Callable[[list[str]], Page]) -> int:
        """Fetch the missing pages of `size` ids each and return their number."""
        chunks = _chunks(ids, size)
        fetched = left_out = 0
        for number, chunk in enumerate(chunks):
            page = self._read(number, chunk)
            if page is None or page.absent == len(chunk):
                page = fetch_page(chunk)
                self.store(self._file(number), {"asked": chunk, **vars(page)})
                fetched += 1
            left_out += len(page.left_out)
            done = min((number + 1) * size, len(ids))
            self.say(f"page {number + 1} of {len(chunks)}: {done} of {len(ids)}, {left_out} left out")
        return fetched

    def read(self, ids: Sequence[str], size: int) -> Iterator[Page]:
        """Yield the pages that `fetch` stored, in order.

        Raises:
            DownloadError: a page is missing or damaged.
        """
        for number, chunk in enumerate(_chunks(ids, size)):
            page = self._read(number, chunk)
            if page is None:
                raise DownloadError(f"{self._file(number)} is missing or damaged; run the same command again")
            yield page

    def _file(self, number: int) -> Path:
        return self.path / PAGES / f"page-{number:05d}.json.gz"

    def _read(self, number: int, ids: Sequence[str]) -> Page | None:
        """Read a stored page; None if it is missing, damaged, or has other ids."""
        content = _load(self._file(number))
        if not isinstance(content, dict) or content.get("asked") != list(ids):
            return None
        del content["asked"]
        return Page(**content)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Report an error of the disk in one line."""
    try:
        yield
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None


def _visible(folder: Path) -> list[Path]:
    """List a folder without hidden files: a kill during the first write leaves one."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _chunks(ids: Sequence[str], size: int) -> list[list[str]]:
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


def _load(path: Path) -> Any:
    """Load a JSON file; None if it is missing or damaged, as by a full disk."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (FileNotFoundError, NotADirectoryError, EOFError, ValueError, zlib.error, gzip.BadGzipFile):
        return None
    except OSError as error:
        raise DownloadError(f"cannot read {path}: {error.strerror or error}") from None


def _without_nan(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return content
