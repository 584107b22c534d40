"""A folder that a fetch fills page by page, and goes on filling after it was interrupted.

QUERY says what was asked; another question in the same folder is refused. Each page is one gzipped JSON file
that appears whole or not at all, and a page that is there is not fetched again.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specjax.atomic import atomic_file
from specjax.errors import ConfigError, DownloadError
from specjax.progress import Say

QUERY, PAGES = "query.json", "pages"

# What a kill while a file was written leaves beside it, see `atomic_file`.
_LEFTOVERS = (".query-*", ".found-*", ".spectra-*", ".gaia_xp-*", f"{PAGES}/.page-*")

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Records in the order of the ids that were asked for, and why others are not among them.

    Attributes:
      records: what can be used.
      left_out: {id: reason}.
      absent: how many of the latter the service had nothing of. A page of these alone is asked for again.
    """

    records: list[Record]
    left_out: dict[str, str] = field(default_factory=dict)
    absent: int = 0


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder of one query.

    Attributes:
      path: where it is.
      query: what is asked; written with the first answer, so that a question that fails can be corrected.
      say: takes lines of progress.
    """

    path: Path
    query: Mapping[str, Any]
    say: Say

    @classmethod
    def open(cls, path: Path, query: Mapping[str, Any], say: Say) -> Folder:
        """The folder for this query, made (empty) if it is not there.

        Raises:
          ConfigError: the folder holds another query, or something else.
          DownloadError: it cannot be written.
        """
        path = Path(path)
        query = json.loads(json.dumps(query))
        before = _load(path / QUERY)
        if before is None and path.exists() and (not path.is_dir() or _visible(path)):
            raise ConfigError(f"{path} holds something other than a fetch; it is left as it is")
        if before is not None and before != query:
            changed = [key for key in {**before, **query} if before.get(key) != query.get(key)]
            asked = ", ".join(f"{key} {before.get(key)} then, {query.get(key)} now" for key in changed)
            raise ConfigError(f"{path} holds the answer to another question ({asked}): use another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None
        for pattern in _LEFTOVERS:
            for leftover in path.glob(pattern):
                leftover.unlink(missing_ok=True)
        return cls(path=path, query=query, say=say)

    def store(self, path: Path, content: Any) -> None:
        """Content as JSON (gzipped where the name says so), whole or not at all; not-a-numbers as null."""
        if path.name != QUERY and not (self.path / QUERY).exists():
            self.store(self.path / QUERY, self.query)
        try:
            text = json.dumps(content, allow_nan=False)
        except ValueError:
            text = json.dumps(_without_nan(content), allow_nan=False)
        data = text.encode()
        try:
            with atomic_file(path) as temporary:
                temporary.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
        except OSError as error:
            raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """The content of the file `name`, made and stored if it is not there."""
        content = _load(self.path / name)
        if content is None:
            content = make()
            self.store(self.path / name, content)
            content = _load(self.path / name)
        return content

    def fetch(self, ids: Sequence[str], size: int, fetch_page: Callable[[list[str]], Page]) -> int:
        """Fetch the pages that are not there yet, `size` ids a page; returns how many were fetched."""
        chunks = _chunks(ids, size)
        fetched = lost = 0
        for number, chunk in enumerate(chunks):
            page = self._read(number, chunk)
            if page is None or page.absent == len(chunk):
                page = fetch_page(chunk)
                self.store(self._file(number), {"asked": chunk, **vars(page)})
                fetched += 1
            lost += len(page.left_out)
            done = min((number + 1) * size, len(ids))
            self.say(f"page {number + 1} of {len(chunks)}: {done} of {len(ids)}, {lost} left out")
        return fetched

    def read(self, ids: Sequence[str], size: int) -> Iterator[Page]:
        """The pages that `fetch` stored, in order."""
        for number, chunk in enumerate(_chunks(ids, size)):
            page = self._read(number, chunk)
            if page is None:
                raise DownloadError(f"{self._file(number)} is gone or damaged: run the same command again")
            yield page

    def _file(self, number: int) -> Path:
        return self.path / PAGES / f"page-{number:05d}.json.gz"

    def _read(self, number: int, asked: Sequence[str]) -> Page | None:
        """A stored page; None if it is not there, is damaged, or answers other ids."""
        content = _load(self._file(number))
        if not isinstance(content, dict) or content.get("asked") != list(asked):
            return None
        del content["asked"]
        return Page(**content)


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, but for hidden files: a kill during the first write leaves one."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _chunks(ids: Sequence[str], size: int) -> list[list[str]]:
    return [list(ids[start : start + size]) for start in range(0, len(ids), size)]


def _load(path: Path) -> Any:
    """The content of a JSON file; None if it is not there or damaged, as by a full disk."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except (EOFError, ValueError, gzip.BadGzipFile):
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
