"""JSON over HTTP with patience: every way in which an answer can fail is tried again or said in one line."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import (
    DecodeError,
    HTTPError,
    InvalidHeader,
    LocationParseError,
    MaxRetryError,
    ResponseError,
    SSLError,
)
from urllib3.util import Retry, Timeout, make_headers

from specjax._version import __version__
from specjax.errors import ConfigError, DownloadError
from specjax.progress import Say, say
from specjax.services.retry import Patience, TransientError

T = TypeVar("T")

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_SHOWN = 120  # characters of a service's own message in ours


@dataclass(frozen=True, kw_only=True)
class JsonService:
    """A service that speaks JSON under one address.

    Attributes:
      root: https://host/path, without a slash at the end.
      patience: how failures that may pass are tried again.
      say: takes lines of progress.
    """

    root: str
    patience: Patience = field(default_factory=Patience)
    say: Say = say
    _pool: list[urllib3.PoolManager] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.root)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the address of a service is http(s)://host/path, not {self.root!r}")

    def get(self, path: str, understand: Callable[[Any], T]) -> T:
        """What `understand` makes of the answer to GET; see `post`."""
        return self._ask("GET", path, None, understand)

    def post(
        self,
        path: str,
        body: Any,
        understand: Callable[[Any], T],
        query: Mapping[str, Any] | None = None,
    ) -> T:
        """What `understand` makes of the answer to a POST of `body` as JSON.

        Args:
          path: appended to the root, with its slashes.
          body: anything that JSON can say.
          understand: takes the parsed answer; raises `TransientError` to have the question asked again.
          query: appended to the path.

        Raises:
          DownloadError: the service refuses, or fails until patience ends; the message has the address.
        """
        return self._ask("POST", path + (f"?{urlencode(query)}" if query else ""), body, understand)

    def _ask(self, method: str, path: str, body: Any, understand: Callable[[Any], T]) -> T:
        url = self.root + path
        sent = None if body is None else json.dumps(body).encode()
        shown = self.root + path.partition("?")[0]
        return self.patience.keep_trying(
            lambda: understand(self._answer(method, url, sent, shown)), shown, self.say
        )

    def _answer(self, method: str, url: str, body: bytes | None, shown: str) -> Any:
        """One attempt: the parsed answer."""
        try:
            response = self._manager().request(
                method,
                url,
                body=body,
                headers={"Content-Type": "application/json"} if body is not None else None,
                timeout=Timeout(connect=self.patience.connect, read=self.patience.silence),
                # Only redirects are urllib3's: what it tries again itself could not be counted or tested.
                retries=Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0),
                preload_content=False,
            )
            try:
                content = self._read(response)
            finally:
                response.close()
        except HTTPError as error:
            raise _meaning(error, shown) from None
        if response.status != 200:
            raise _refusal(response.status, response.headers.get("Retry-After"), content, shown)
        return _parse(content)

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        """The body, unpacked; a server that drips one byte at a time is left when `total` is over."""
        end = self.patience.clock() + self.patience.total
        chunks = []
        while chunk := response.read1(_CHUNK, decode_content=True):
            chunks.append(chunk)
            if self.patience.clock() > end:
                raise TransientError(f"the answer took more than {self.patience.total:.0f} s")
        return b"".join(chunks)

    def _manager(self) -> urllib3.PoolManager:
        """One pool of connections, through the proxy of the environment if there is one."""
        if not self._pool:
            headers = {
                "User-Agent": f"specjax/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
            }
            parts = urlsplit(self.root)
            proxy = urllib.request.getproxies().get(parts.scheme)
            if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
                known = urlsplit(proxy)
                user = unquote(f"{known.username}:{known.password or ''}") if known.username else None
                secret = make_headers(proxy_basic_auth=user)
                self._pool.append(urllib3.ProxyManager(proxy, headers=headers, proxy_headers=secret))
            else:
                self._pool.append(urllib3.PoolManager(headers=headers))
        return self._pool[0]


def _meaning(error: HTTPError, shown: str) -> Exception:
    """Whether what urllib3 raises may pass."""
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(cause, ResponseError):
        return DownloadError(f"{shown}: it redirects without end")
    if isinstance(cause, LocationParseError) or (
        isinstance(cause, SSLError) and "CERTIF" in str(cause).upper()
    ):
        return DownloadError(f"{shown}: {_line(str(cause))}")
    if isinstance(cause, DecodeError):
        return TransientError("the answer's compression is damaged")
    # The name says what happened (ReadTimeoutError, ProtocolError); the text has addresses of objects.
    what = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(cause).__name__.removesuffix("Error")).lower()
    return TransientError(f"no answer ({what})" if "timeout" in what else f"the connection failed ({what})")


def _refusal(status: int, retry_after: str | None, content: bytes, shown: str) -> Exception:
    """Whether an answer other than 200 may pass, with what the service says."""
    said = _message(content)
    reason = f"the service answers {status}" + (f" ({said})" if said else "")
    if status not in _BUSY:
        return DownloadError(f"{shown}: {reason}")
    try:
        asked = None if retry_after is None else Retry().parse_retry_after(retry_after)
    except InvalidHeader:
        asked = None
    return TransientError(reason, asked)


def _message(content: bytes) -> str:
    """The service's own words: errorMessage or detail of JSON, or a text without its HTML tags."""
    try:
        said = json.loads(content)
    except ValueError:
        text = content[:4096].decode("utf-8", "replace")
        text = re.sub(r"<(script|style)\b.*?(</\1>|$)", " ", text, flags=re.DOTALL | re.IGNORECASE)
        return _line(re.sub(r"<[^>]*>?", " ", text))
    if isinstance(said, Mapping):
        said = said.get("errorMessage") or said.get("detail") or said.get("message") or ""
    return _line(said if isinstance(said, str) else "")


def _line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


def _parse(content: bytes) -> Any:
    """JSON, whatever the content type says; a proxy's page in its place is trouble that may pass."""
    if not content.strip():
        raise TransientError("the answer is empty")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    if content.lstrip()[:1] == b"<":
        raise TransientError(f"the answer is a web page, not JSON ({_message(content)})")
    raise TransientError("the answer is not JSON, or is cut off")
