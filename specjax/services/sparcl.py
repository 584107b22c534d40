"""The REST interface of SPARCL, NOIRLab's spectral archive, with JSON in and out.

find gives the metadata of the records that fulfil constraints, at most `limit` of them and in no order;
spectras gives the records of a list of sparcl_ids, in no order and without those that it does not have. Both
answer a list whose first element is a header. The service names fields differently inside: `datafields` lists
both names. (The project's own client unpickles the answers and pins NumPy below current JAX's.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from specjax.errors import ConfigError, DataError
from specjax.progress import Say, say
from specjax.services.http import JsonService
from specjax.services.retry import Patience, TransientError

URL = "https://astrosparcl.datalab.noirlab.edu"
URL_VARIABLE = "SPECJAX_SPARCL_URL"
"""Environment variable with another address than `URL`: a mirror or a test server."""

RETRIEVE_LIMIT = 24_000
"""Records that one call of spectras gives at most."""

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
"""The fields asked for of each record found."""

SPECTRUM = ("wavelength", "flux", "ivar", "mask")

Record = dict[str, Any]
Search = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Sparcl:
    """The archive for one data release.

    Attributes:
      service: the address and the patience.
      release: a data set such as DESI-EDR or DESI-DR1.
    """

    service: JsonService
    release: str

    @classmethod
    def connect(
        cls,
        release: str,
        url: str | None = None,
        patience: Patience | None = None,
        say: Say = say,
    ) -> Sparcl:
        """The archive at `url`, at $SPECJAX_SPARCL_URL, or at its public address; nothing is asked yet."""
        root = (url or os.environ.get(URL_VARIABLE) or URL).rstrip("/").removesuffix("/api")
        return cls(JsonService(root=f"{root}/api", patience=patience or Patience(), say=say), release)

    def count(self, search: Search) -> int:
        """How many records fulfil the constraints, each {field: [values]} or {field: [from, to]}."""
        return self.service.post("/find/", self._question(search), _count, query={"count": "y", "limit": 1})

    def find(self, search: Search, limit: int) -> list[Record]:
        """Metadata of at most `limit` records that fulfil the constraints."""
        return self.service.post("/find/", self._question(search), self._records, query={"limit": limit})

    def retrieve(self, ids: Sequence[str]) -> list[Record]:
        """The records of these sparcl_ids as the service gives them: unordered, perhaps fewer or more."""
        fields = [name for name in (*METADATA, *SPECTRUM) if name in self._inside]
        query = {
            "include": ",".join(self._inside[name] for name in fields),
            "format": "json",
            "dataset_list": self.release,
        }
        return self.service.post("/spectras/", list(ids), self._records, query=query)

    def _question(self, search: Search) -> dict[str, Any]:
        constraints = {"data_release": [self.release], **search}
        missing = [name for name in (*constraints, "sparcl_id") if name not in self._inside]
        if missing:
            raise DataError(f"{self.service.root} has no field {', '.join(missing)} for {self.release}")
        return {
            "outfields": [self._inside[name] for name in METADATA if name in self._inside],
            "search": [[self._inside[name], *values] for name, values in constraints.items()],
        }

    @cached_property
    def _inside(self) -> dict[str, str]:
        """{our name: the service's} of the release's fields."""
        fields = self.service.get("/datafields/", _rows)
        releases = {str(row.get("data_release")) for row in fields}
        if self.release not in releases:
            raise ConfigError(
                f"{self.service.root} has no release {self.release!r}: it has {', '.join(sorted(releases))}"
            )
        return {
            str(row["newdp"]): str(row["origdp"])
            for row in fields
            if row.get("data_release") == self.release and "newdp" in row and "origdp" in row
        }

    def _records(self, answer: Any) -> list[Record]:
        """The answer without its header, in our names."""
        rows = _after_header(answer)
        ours = {inside: name for name, inside in self._inside.items()}
        return [{ours.get(name, name): value for name, value in row.items()} for row in rows]


def _rows(answer: Any) -> list[Record]:
    if not isinstance(answer, list) or not answer or not all(isinstance(row, dict) for row in answer):
        raise TransientError("the answer is not a list of records")
    return answer


def _after_header(answer: Any) -> list[Record]:
    rows = _rows(answer)
    if "status" not in rows[0]:
        raise TransientError("the answer does not begin with a header")
    return rows[1:]


def _count(answer: Any) -> int:
    rows = _after_header(answer)
    count = rows[0].get("count") if rows else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise TransientError("the answer has no count")
    return count
