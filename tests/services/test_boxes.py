"""The search of the sky in boxes, with an archive of positions in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.errors import DataError
from specjax.services.boxes import Box, find_in_boxes, sky_boxes
from specjax.services.desi_search import near


class Positions:
    """Counts and finds records by position, as SPARCL does."""

    class service:  # noqa: N801  an attribute of the archive
        root = "memory"

    def __init__(self, ra, dec):
        rows = zip(ra, dec, strict=True)
        self.records = [{"sparcl_id": str(k), "ra": r, "dec": d} for k, (r, d) in enumerate(rows)]
        self.counts, self.found = [], []

    def _fitting(self, search):
        keys = [key for key in ("ra", "dec") if key in search]
        return [r for r in self.records if all(search[k][0] <= r[k] <= search[k][1] for k in keys)]

    def count(self, search):
        self.counts.append(search)
        return len(self._fitting(search))

    def find(self, search, limit):
        some = self._fitting(search)[:limit]
        self.found += some
        return some


def quiet(line):
    pass


@given(seed=st.integers(0, 10_000), limit=st.integers(1, 60), count=st.integers(0, 80))
@settings(max_examples=30, deadline=None)
def test_every_record_is_found_once_whatever_the_limit(seed, limit, count):
    rng = np.random.default_rng(seed)
    # Round numbers, so that records lie exactly where boxes are cut.
    archive = Positions(rng.integers(0, 1440, count) / 4, rng.integers(-360, 361, count) / 4)
    spots = [(r["ra"], r["dec"]) for r in archive.records]
    if count and max(spots.count(spot) for spot in spots) > limit:
        return
    records = find_in_boxes(archive, sky_boxes((0.0, 360.0), (-90.0, 90.0)), {}, limit=limit, say=quiet)
    assert sorted(r["sparcl_id"] for r in records) == sorted(str(k) for k in range(count))
    assert len(archive.found) == count  # none is requested twice


@given(seed=st.integers(0, 10_000), radius=st.sampled_from([1.0, 60.0, 3600.0]))
@settings(max_examples=30, deadline=None)
def test_everything_near_a_target_is_found(seed, radius):
    rng = np.random.default_rng(seed)
    targets = np.stack([rng.uniform(0, 360, 8), np.degrees(np.arcsin(rng.uniform(-1, 1, 8)))], axis=1)
    targets[0] = [0.0, 0.0]  # where right ascension wraps
    targets[1] = [123.0, 89.9]  # a small circle around the pole
    offset = rng.uniform(-1.5, 1.5, (300, 2)) * radius / 3600
    places = targets[rng.integers(0, 8, 300)]
    dec = np.clip(places[:, 1] + offset[:, 1], -90, 90)
    ra = (places[:, 0] + offset[:, 0] / np.cos(np.radians(dec))) % 360
    archive = Positions(ra, dec)
    boxes = sky_boxes((0.0, 360.0), (-90.0, 90.0), targets)
    found = find_in_boxes(
        archive,
        boxes,
        {},
        radius=radius / 3600,
        keep=lambda some: near(some, targets, radius),
        limit=50,
        say=quiet,
    )
    expected = {r["sparcl_id"] for r in near(archive.records, targets, radius)}
    assert {r["sparcl_id"] for r in found} == expected


def test_boxes_without_targets_are_not_searched():
    archive = Positions(np.linspace(0, 359, 500), np.zeros(500))
    targets = np.array([[10.0, 0.0], [200.0, 0.0]])
    found = find_in_boxes(
        archive, sky_boxes((0.0, 360.0), (-90.0, 90.0), targets), {}, radius=1.0, limit=20, say=quiet
    )
    assert len(found) < 10
    assert len(archive.counts) < 20


def test_wrapping_ranges_and_limits():
    archive = Positions([359.0, 1.0, 180.0], [0.0, 0.0, 0.0])
    wrapped = find_in_boxes(archive, sky_boxes((350.0, 10.0), (-1.0, 1.0)), {}, say=quiet)
    assert [r["sparcl_id"] for r in wrapped] == ["0", "1"]
    assert len(find_in_boxes(archive, sky_boxes((0.0, 360.0), (-90.0, 90.0)), {}, wanted=2, say=quiet)) == 2


def test_too_many_records_at_one_point_are_an_error():
    archive = Positions([10.0] * 30, [5.0] * 30)
    with pytest.raises(DataError, match=r"memory: 30 records at ra (10\.0000|9\.9999)"):
        find_in_boxes(archive, sky_boxes((0.0, 360.0), (-90.0, 90.0)), {}, limit=20, say=quiet)


def test_boxes_shrink_to_their_targets():
    box = Box(ra=(0.0, 90.0), dec=(0.0, 60.0), targets=np.array([[200.0, 10.0]]))
    assert box.around_targets(1.0) is None
    inside = Box(ra=(0.0, 90.0), dec=(0.0, 60.0), targets=np.array([[45.0, 30.0]])).around_targets(1.0)
    assert inside.dec == (29.0, 31.0)
    # 1 degree along the sky is 1.17 degrees of right ascension at declination 31
    assert inside.ra == pytest.approx((45 - 1 / np.cos(np.radians(31)), 45 + 1 / np.cos(np.radians(31))))
