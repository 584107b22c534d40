"""Find all records of SPARCL in a part of the sky by halving boxes until the records of each fit one call."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from specjax.errors import DataError
from specjax.plurals import counted
from specjax.progress import Say, silent
from specjax.services.pages import Record
from specjax.services.sparcl import Search, Sparcl
from specjax.typing import FloatArray

FIND_LIMIT = 20_000
"""The most records of metadata requested in one call (about 5 MB)."""

_SMALLEST = 1e-5  # degrees; a smaller box with too many records is an error


@dataclass(frozen=True, kw_only=True)
class Box:
    """A range of right ascension and declination in degrees, which does not wrap.

    Attributes:
        ra, dec: lower and upper bound.
        targets: (k, 2) ra and dec of the stars to find; None if all records in the box are wanted.
    """

    ra: tuple[float, float]
    dec: tuple[float, float]
    targets: FloatArray | None = None

    @property
    def search(self) -> dict[str, list[float]]:
        """The box as constraints; none for the whole sky, so that records without a position are included."""
        whole = self.ra[0] <= 0.0 and self.ra[1] >= 360.0 and self.dec[0] <= -90.0 and self.dec[1] >= 90.0
        return {} if whole else {"ra": list(self.ra), "dec": list(self.dec)}

    def halves(self) -> list["Box"]:
        """Cut the box across its longer side; only the lower half includes the cut."""
        width, height = self.ra[1] - self.ra[0], self.dec[1] - self.dec[0]
        along_ra = width * np.cos(np.radians(sum(self.dec) / 2)) >= height
        low, top = self.ra if along_ra else self.dec
        middle = (low + top) / 2
        parts = [(low, middle), (float(np.nextafter(middle, np.inf)), top)]
        return [replace(self, ra=part) if along_ra else replace(self, dec=part) for part in parts]

    def around_targets(self, radius: float) -> "Box | None":
        """Shrink the box to what lies within `radius` degrees of its targets; None if there are none."""
        if self.targets is None:
            return self
        ra, dec = self.targets.T
        pad = np.minimum(radius / np.maximum(np.cos(np.radians(np.abs(dec) + radius)), 1e-3), 360.0)
        near = (ra + pad >= self.ra[0]) & (ra - pad <= self.ra[1])
        near &= (dec + radius >= self.dec[0]) & (dec - radius <= self.dec[1])
        if not near.any():
            return None
        return Box(
            ra=(
                max(self.ra[0], float((ra - pad)[near].min())),
                min(self.ra[1], float((ra + pad)[near].max())),
            ),
            dec=(
                max(self.dec[0], float((dec - radius)[near].min())),
                min(self.dec[1], float((dec + radius)[near].max())),
            ),
            targets=self.targets[near],
        )


def sky_boxes(
    ra: tuple[float, float], dec: tuple[float, float], targets: FloatArray | None = None
) -> list[Box]:
    """Return the boxes of a range of the sky: two where right ascension wraps, which a box must not.

    Targets are repeated 360 degrees to either side, so that those near 0 find records across it.
    """
    if targets is not None:
        targets = np.concatenate([targets + np.array([turn, 0.0]) for turn in (-360.0, 0.0, 360.0)])
    parts = [ra] if ra[0] <= ra[1] else [(ra[0], 360.0), (0.0, ra[1])]
    return [Box(ra=part, dec=dec, targets=targets) for part in parts]


def find_in_boxes(
    archive: Sparcl,
    boxes: list[Box],
    search: Search,
    *,
    radius: float = 0.0,
    wanted: int | None = None,
    keep: Callable[[list[Record]], list[Record]] = list,
    limit: int = FIND_LIMIT,
    say: Say = silent,
) -> list[Record]:
    """Return the metadata of the records in the boxes that fulfil the constraints, each sparcl_id once.

    Args:
        archive: the archive to search.
        boxes: from `sky_boxes`.
        search: further constraints.
        radius: degrees around targets.
        wanted: stop after this number of records.
        keep: selects among the records of a box, for example those near a target.
        limit: most records requested in one call.
        say: takes lines of progress.

    Raises:
        DataError: too many records at one point, or the archive returns fewer records than it counts.
    """
    found: dict[str, Record] = {}
    seen = 0
    for records in _search(archive, boxes, search, radius, wanted, limit):
        seen += len(records)
        for record in keep([record for record in records if record.get("sparcl_id")]):
            found.setdefault(str(record["sparcl_id"]), record)
        say(f"found {counted(len(found), 'record')}" + (f" among {seen}" if seen > len(found) else ""))
        if wanted is not None and len(found) >= wanted:
            break
    return list(found.values())[:wanted]


def _search(
    archive: Sparcl, boxes: list[Box], search: Search, radius: float, wanted: int | None, limit: int
) -> Iterator[list[Record]]:
    """Yield the records of each box, halving boxes that have more than `limit`."""
    todo = list(reversed(boxes))
    while todo:
        box = todo.pop().around_targets(radius)
        if box is None:
            continue
        query = {**search, **box.search}
        count = archive.count(query)
        if count <= limit or (wanted is not None and wanted <= limit and box.targets is None):
            if count:
                yield find_all(archive, query, min(count, limit if wanted is None else min(wanted, limit)))
        elif max(box.ra[1] - box.ra[0], box.dec[1] - box.dec[0]) < _SMALLEST:
            raise DataError(
                f"{archive.service.root}: {count} records at ra {box.ra[0]:.5f}, dec {box.dec[0]:.5f}"
            )
        else:
            todo.extend(reversed(box.halves()))


def find_all(archive: Sparcl, search: Search, count: int) -> list[Record]:
    """Return `count` distinct records, requesting them a second time if the first response has fewer.

    Raises:
        DataError: the second response has fewer, too.
    """
    if not count:
        return []
    for _ in range(2):
        records = archive.find(search, count)
        distinct = len({record.get("sparcl_id") for record in records} - {None})
        if distinct >= count:
            return records
    raise DataError(f"{archive.service.root}/find/ counts {count} records but twice returned only {distinct}")
