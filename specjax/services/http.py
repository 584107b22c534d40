"""A JSON client over HTTP with retries: every failure is either retried or reported in one line.

Responses are bounded in time and in bytes, as sent and as unpacked, so that no service can fill the memory.
"""

import json
import re
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    LocationParseError,
    MaxRetryError,
    ResponseError,
    SSLError,
)
from urllib3.util import Timeout, make_headers

from specjax._version import __version__
from specjax.errors import ConfigError, DownloadError
from specjax.progress import Say, say
from specjax.services.retry import Retry, TransientError

T = TypeVar("T")

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_LIMIT = 64 << 20  # bytes of a response of which nothing else is known
_GZIP = 16 + zlib.MAX_WBITS  # lets zlib read the format of gzip, with its CRC
_QUOTED = 120  # characters of a service's own message that are quoted in an error


@dataclass(frozen=True, kw_only=True)
class JsonService:
    """A service that exchanges JSON under one base address.

    Attributes:
        root: https://host/path, without a slash at the end.
        retry: how transient failures are retried.
        say: takes lines of progress.
    """

    root: str
    retry: Retry = field(default_factory=Retry)
    say: Say = say
    _pool: list[urllib3.PoolManager] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.root)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the address of a service must be http(s)://host/path, not {self.root!r}")

    def get(self, path: str, interpret: Callable[[Any], T]) -> T:
        """Send a GET request and return its interpreted response; see `post`."""
        return self._request("GET", path, None, interpret)

    def post(
        self,
        path: str,
        body: Any,
        interpret: Callable[[Any], T],
        query: Mapping[str, Any] | None = None,
        *,
        limit: int = _LIMIT,
    ) -> T:
        """Send a POST request with a JSON body and return its interpreted response.

        Args:
            path: appended to the root, with its slashes.
            body: anything that JSON can represent.
            interpret: converts the parsed response; it raises `TransientError` to have the request repeated.
            query: parameters appended to the path.
            limit: bytes that the response may have, both as sent and as unpacked.

        Raises:
            DownloadError: the service refuses the request, its response is too long, or all attempts failed;
                the message has the address.
        """
        path += f"?{urlencode(query)}" if query else ""
        return self._request("POST", path, body, interpret, limit)

    def _request(
        self, method: str, path: str, body: Any, interpret: Callable[[Any], T], limit: int = _LIMIT
    ) -> T:
        url = self.root + path
        sent = None if body is None else json.dumps(body).encode()
        shown = self.root + path.partition("?")[0]

        def attempt() -> T:
            return interpret(self._attempt(method, url, sent, shown, limit))

        return self.retry.call(attempt, shown, self.say)

    def _attempt(self, method: str, url: str, body: bytes | None, shown: str, limit: int) -> Any:
        """Send the request once and return the parsed response."""
        try:
            response = self._manager().request(
                method,
                url,
                body=body,
                headers={"Content-Type": "application/json"} if body is not None else None,
                timeout=Timeout(connect=self.retry.connect, read=self.retry.read),
                # urllib3 only follows redirects: attempts that it repeated could not be counted or tested.
                retries=urllib3.Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0),
                preload_content=False,
            )
            try:
                content = self._read(response, limit)
            finally:
                response.close()
        except _TooLongError:
            raise DownloadError(
                f"{shown}: the response is longer than {limit / 1e6:,.0f} MB, more than was asked for"
            ) from None
        except HTTPError as error:
            raise _connection_error(error, shown) from None
        if response.status != 200:
            raise _status_error(response.status, response.headers.get("Retry-After"), content, shown)
        return _parse(content)

    def _read(self, response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
        """Read and unpack the body; a server that sends byte by byte is abandoned after `retry.total`.

        Raises:
            _TooLongError: the body has more than `limit` bytes, as announced, as sent or as unpacked.
            TransientError: the body is damaged, or takes too long.
        """
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _TooLongError
        end, sent = self.retry.clock() + self.retry.total, 0
        body = _Body(response.headers.get("Content-Encoding", ""), limit)
        while chunk := response.read1(_CHUNK, decode_content=False):
            sent += len(chunk)
            if sent > limit:
                raise _TooLongError
            body.add(chunk)
            if self.retry.clock() > end:
                raise TransientError(f"the response took more than {self.retry.total:.0f} s")
        return body.content()

    def _manager(self) -> urllib3.PoolManager:
        """Return the connection pool, which uses the proxy of the environment if there is one."""
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


class _TooLongError(Exception):
    """A response with more bytes than allowed."""


class _Body:
    """The body of a response, unpacked as it arrives, so that never more than `limit` bytes are in memory."""

    def __init__(self, encoding: str, limit: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise TransientError(
                f"the response is in the encoding {_line(encoding)}, which was not asked for"
            )
        self._unpack = zlib.decompressobj(_GZIP) if "gzip" in encoding else None
        self._parts: list[bytes] = []
        self._free = limit

    def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._unpack is None:
            self._parts.append(chunk)
            return
        try:
            part = self._unpack.decompress(chunk, self._free + 1)
        except zlib.error:
            raise TransientError("the compressed response is damaged") from None
        self._free -= len(part)
        if self._free < 0:
            raise _TooLongError
        self._parts.append(part)

    def content(self) -> bytes:
        """Return all bytes."""
        if self._unpack is not None and self._parts and not self._unpack.eof:
            raise TransientError("the compressed response is truncated")
        return b"".join(self._parts)


def _connection_error(error: HTTPError, shown: str) -> Exception:
    """Convert an exception of urllib3 to a transient or a final error."""
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(cause, ResponseError):
        return DownloadError(f"{shown}: too many redirects")
    if isinstance(cause, LocationParseError) or (
        isinstance(cause, SSLError) and "CERTIF" in str(cause).upper()
    ):
        return DownloadError(f"{shown}: {_line(str(cause))}")
    # The class says what happened (ReadTimeoutError, ProtocolError); its text has addresses of objects.
    what = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(cause).__name__.removesuffix("Error")).lower()
    return TransientError(f"no response ({what})" if "timeout" in what else f"the connection failed ({what})")


def _status_error(status: int, retry_after: str | None, content: bytes, shown: str) -> Exception:
    """Convert a status other than 200 to a transient or a final error, with the service's own message."""
    message = _message(content)
    reason = f"the service returned status {status}" + (f" ({message})" if message else "")
    if status not in _BUSY:
        return DownloadError(f"{shown}: {reason}")
    try:
        seconds = None if retry_after is None else urllib3.Retry().parse_retry_after(retry_after)
    except InvalidHeader:
        seconds = None
    return TransientError(reason, seconds)


def _message(content: bytes) -> str:
    """Return the service's own message: errorMessage or detail of JSON, or the text of an HTML page."""
    try:
        body = json.loads(content)
    except ValueError:
        text = content[:4096].decode("utf-8", "replace")
        text = re.sub(r"<(script|style)\b.*?(</\1>|$)", " ", text, flags=re.DOTALL | re.IGNORECASE)
        return _line(re.sub(r"<[^>]*>?", " ", text))
    if isinstance(body, Mapping):
        body = body.get("errorMessage") or body.get("detail") or body.get("message") or ""
    return _line(body if isinstance(body, str) else "")


def _line(text: str) -> str:
    """Make one short, printable line of a text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _QUOTED else line[: _QUOTED - 3] + "..."


def _parse(content: bytes) -> Any:
    """Parse JSON, whatever the content type; the page of a proxy in its place is a transient failure."""
    if not content.strip():
        raise TransientError("the response is empty")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    if content.lstrip()[:1] == b"<":
        raise TransientError(f"the response is a web page, not JSON ({_message(content)})")
    raise TransientError("the response is not JSON, or is truncated")
