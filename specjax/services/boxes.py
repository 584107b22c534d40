"""All records in a part of the sky, though one answer is limited: boxes are halved until each fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from specjax.errors import DataError
from specjax.progress import Say
from specjax.services.sparcl import Record, Search, Sparcl
from specjax.typing import FloatArray

FIND_LIMIT = 20_000
"""Records of metadata asked for in one call (about 5 MB)."""

_SMALLEST = 1e-5  # degrees; a box of this size that still holds too many is not split further


@dataclass(frozen=True, kw_only=True)
class Box:
    """A range of right ascension and declination, degrees, that does not wrap.

    With targets, (k, 2) ra and dec in it, only what is near them is wanted.
    """

    ra: tuple[float, float]
    dec: tuple[float, float]
    targets: FloatArray | None = None

    @property
    def search(self) -> dict[str, list[float]]:
        """The box as constraints; the whole sky as none, which a record without a position fulfils too."""
        whole = self.ra[0] <= 0.0 and self.ra[1] >= 360.0 and self.dec[0] <= -90.0 and self.dec[1] >= 90.0
        return {} if whole else {"ra": list(self.ra), "dec": list(self.dec)}

    def halves(self) -> list[Box]:
        """Two boxes, cut across the longer side; only the one at the lower end has the cut itself."""
        wide, high = self.ra[1] - self.ra[0], self.dec[1] - self.dec[0]
        along_ra = wide * np.cos(np.radians(sum(self.dec) / 2)) >= high
        low, top = self.ra if along_ra else self.dec
        middle = (low + top) / 2
        parts = [(low, middle), (float(np.nextafter(middle, np.inf)), top)]
        if along_ra:
            return [Box(ra=part, dec=self.dec, targets=self.targets) for part in parts]
        return [Box(ra=self.ra, dec=part, targets=self.targets) for part in parts]


def around(box: Box, radius: float) -> Box | None:
    """The box shrunk to what is within `radius` degrees of its targets; None if it has none."""
    if box.targets is None:
        return box
    ra, dec = box.targets.T
    pad = np.minimum(radius / np.maximum(np.cos(np.radians(np.abs(dec) + radius)), 1e-3), 360.0)
    near = (ra + pad >= box.ra[0]) & (ra - pad <= box.ra[1])
    near &= (dec + radius >= box.dec[0]) & (dec - radius <= box.dec[1])
    if not near.any():
        return None
    return Box(
        ra=(max(box.ra[0], float((ra - pad)[near].min())), min(box.ra[1], float((ra + pad)[near].max()))),
        dec=(
            max(box.dec[0], float((dec - radius)[near].min())),
            min(box.dec[1], float((dec + radius)[near].max())),
        ),
        targets=box.targets[near],
    )


def sky(ra: tuple[float, float], dec: tuple[float, float], targets: FloatArray | None = None) -> list[Box]:
    """The boxes of a range: two where right ascension wraps, for the service's ranges must not.

    Targets near 0 or 360 degrees are repeated on the other side, so that a radius reaches across.
    """
    if targets is not None:
        targets = np.concatenate([targets + np.array([turn, 0.0]) for turn in (-360.0, 0.0, 360.0)])
    parts = [ra] if ra[0] <= ra[1] else [(ra[0], 360.0), (0.0, ra[1])]
    return [Box(ra=part, dec=dec, targets=targets) for part in parts]


def find_in(
    archive: Sparcl,
    boxes: list[Box],
    search: Search,
    *,
    radius: float = 0.0,
    wanted: int | None = None,
    keep: Callable[[list[Record]], list[Record]] = list,
    limit: int = FIND_LIMIT,
    say: Say = print,
) -> list[Record]:
    """Metadata of the records in the boxes that fulfil the constraints, each sparcl_id once.

    Args:
      archive: where to ask.
      boxes: as `sky` gives them.
      search: further constraints.
      radius: degrees around targets.
      wanted: stop at so many.
      keep: chooses among the records of a box, such as those near a target.
      limit: records asked for in one call.
      say: takes lines of progress.

    Raises:
      DataError: too many records at one point, or an archive that gives fewer than it counts.
    """
    found: dict[str, Record] = {}
    looked_at = 0
    for records in _answers(archive, boxes, search, radius, wanted, limit):
        looked_at += len(records)
        for record in keep([record for record in records if record.get("sparcl_id")]):
            found.setdefault(str(record["sparcl_id"]), record)
        say(f"found {len(found)} records" + (f" among {looked_at}" if looked_at > len(found) else ""))
        if wanted is not None and len(found) >= wanted:
            break
    return list(found.values())[:wanted]


def _answers(
    archive: Sparcl, boxes: list[Box], search: Search, radius: float, wanted: int | None, limit: int
) -> Iterator[list[Record]]:
    """The records of each box, boxes with too many halved."""
    todo = list(reversed(boxes))
    while todo:
        box = around(todo.pop(), radius)
        if box is None:
            continue
        question = {**search, **box.search}
        count = archive.count(question)
        if count <= limit or (wanted is not None and wanted <= limit and box.targets is None):
            if count:
                yield find_all(archive, question, min(count, limit if wanted is None else min(wanted, limit)))
        elif max(box.ra[1] - box.ra[0], box.dec[1] - box.dec[0]) < _SMALLEST:
            raise DataError(
                f"{archive.service.root}: {count} records at ra {box.ra[0]:.5f}, dec {box.dec[0]:.5f}"
            )
        else:
            todo.extend(reversed(box.halves()))


def find_all(archive: Sparcl, question: Search, count: int) -> list[Record]:
    """As many different records as the archive counts; asked once more where there are fewer.

    Raises:
      DataError: there are fewer again.
    """
    if not count:
        return []
    for _ in range(2):
        records = archive.find(question, count)
        different = len({record.get("sparcl_id") for record in records} - {None})
        if different >= count:
            return records
    raise DataError(
        f"{archive.service.root}/find/ gives {different} different records where it counts {count}, twice"
    )
