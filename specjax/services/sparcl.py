"""A client for the REST interface of SPARCL, NOIRLab's archive of spectra.

`find` returns the metadata of records that fulfil constraints, at most `limit` of them, in no order;
`spectras` returns the records of a list of sparcl_ids, in no order and without those that it lacks. Both
return a list whose first element is a header. The service uses other field names internally; `datafields`
lists both. (Its own client unpickles the responses and pins NumPy below the version that JAX needs.)
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from specjax.errors import ConfigError, DataError
from specjax.progress import Say, say
from specjax.services.http import JsonService
from specjax.services.pages import Record
from specjax.services.retry import Retry, TransientError

URL = "https://astrosparcl.datalab.noirlab.edu"
URL_VARIABLE = "SPECJAX_SPARCL_URL"
"""Environment variable with an address to use in place of `URL`: a mirror or a test server."""

RETRIEVE_LIMIT = 24_000
"""The most records that one call of `spectras` returns."""

METADATA = (
    "sparcl_id",
    "specid",
    "targetid",
    "data_release",
    "ra",
    "dec",
    "redshift",
    "redshift_err",
    "redshift_warning",
    "spectype",
)
"""Fields requested for each record found."""

SPECTRUM = ("wavelength", "flux", "ivar", "mask")

# Upper limits of a response. A record of DESI has about 300 bytes of metadata, and a spectrum of 7781 pixels
# with all digits 0.4 MB.
_OVERHEAD, _METADATA_BYTES, _SPECTRUM_BYTES = 1 << 20, 4096, 2 << 20

Search = Mapping[str, Sequence[Any]]
"""Constraints, each {field: [values]} or, for a coordinate or the redshift, {field: [lower, upper]}."""


@dataclass(frozen=True)
class Sparcl:
    """One data release of the archive.

    Attributes:
        service: the address and how failures are retried.
        release: a data set such as DESI-EDR or DESI-DR1.
    """

    service: JsonService
    release: str

    @classmethod
    def connect(
        cls, release: str, url: str | None = None, retry: Retry | None = None, say: Say = say
    ) -> Self:
        """Return the archive at `url`, else at $SPECJAX_SPARCL_URL, else at `URL`; no request is sent yet."""
        root = (url or os.environ.get(URL_VARIABLE) or URL).rstrip("/").removesuffix("/api")
        return cls(JsonService(root=f"{root}/api", retry=retry or Retry(), say=say), release)

    def count(self, search: Search) -> int:
        """Return the number of records that fulfil the constraints."""
        return self.service.post("/find/", self._query(search), _count, query={"count": "y", "limit": 1})

    def find(self, search: Search, limit: int) -> list[Record]:
        """Return the metadata of at most `limit` records that fulfil the constraints."""
        return self.service.post(
            "/find/",
            self._query(search),
            self._records,
            query={"limit": limit},
            limit=_OVERHEAD + limit * _METADATA_BYTES,
        )

    def retrieve(self, ids: Sequence[str]) -> list[Record]:
        """Return the records of sparcl_ids as the service sends them: unordered, perhaps fewer or more."""
        fields = [name for name in (*METADATA, *SPECTRUM) if name in self._internal]
        query = {
            "include": ",".join(self._internal[name] for name in fields),
            "format": "json",
            "dataset_list": self.release,
        }
        limit = _OVERHEAD + len(ids) * _SPECTRUM_BYTES
        return self.service.post("/spectras/", list(ids), self._records, query=query, limit=limit)

    def _query(self, search: Search) -> dict[str, Any]:
        constraints = {"data_release": [self.release], **search}
        missing = [name for name in (*constraints, "sparcl_id") if name not in self._internal]
        if missing:
            raise DataError(f"{self.service.root} has no field {', '.join(missing)} for {self.release}")
        return {
            "outfields": [self._internal[name] for name in METADATA if name in self._internal],
            "search": [[self._internal[name], *values] for name, values in constraints.items()],
        }

    @cached_property
    def _internal(self) -> dict[str, str]:
        """The service's internal names of the release's fields, by their public names."""
        fields = self.service.get("/datafields/", _rows)
        releases = {str(row.get("data_release")) for row in fields}
        if self.release not in releases:
            raise ConfigError(
                f"{self.service.root} has no release {self.release!r}; it has {', '.join(sorted(releases))}"
            )
        return {
            str(row["newdp"]): str(row["origdp"])
            for row in fields
            if row.get("data_release") == self.release and "newdp" in row and "origdp" in row
        }

    def _records(self, response: Any) -> list[Record]:
        """Return the records after the header, under the public field names."""
        public = {internal: name for name, internal in self._internal.items()}
        rows = _after_header(response)
        return [{public.get(name, name): value for name, value in row.items()} for row in rows]


def _rows(response: Any) -> list[Record]:
    if not isinstance(response, list) or not response or not all(isinstance(row, dict) for row in response):
        raise TransientError("the response is not a list of records")
    return response


def _after_header(response: Any) -> list[Record]:
    rows = _rows(response)
    if "status" not in rows[0]:
        raise TransientError("the response does not begin with a header")
    return rows[1:]


def _count(response: Any) -> int:
    rows = _after_header(response)
    count = rows[0].get("count") if rows else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise TransientError("the response has no count")
    return count
