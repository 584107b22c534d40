"""Find the spectra of DESI to fetch: the query, the search of SPARCL, and the match to a star list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord

from specjax.catalogues import sky
from specjax.errors import ConfigError, DataError
from specjax.plurals import counted
from specjax.progress import Say
from specjax.services.boxes import find_all, find_in_boxes, sky_boxes
from specjax.services.pages import Record
from specjax.services.records import column_of_floats
from specjax.services.sparcl import RETRIEVE_LIMIT, Sparcl
from specjax.services.star_list import StarList
from specjax.typing import FloatArray

_IDS_PER_CALL = 500


@dataclass(frozen=True, kw_only=True)
class DesiQuery:
    """Constraints on the spectra to fetch. Ranges include their bounds; None means no constraint.

    Attributes:
        release: DESI-EDR or DESI-DR1.
        spectype: classes that the pipeline assigned; () for any.
        redshift: range of redshift, v/c for stars.
        ra, dec: ranges in degrees; ra may wrap, as in 350 to 10.
        any_warning: include spectra with a doubtful redshift (redshift_warning is not 0).
        any_visit: include spectra that are not the primary one of their target.
        min_snr: minimum median signal-to-noise ratio per pixel, from flux and ivar.
        limit: maximum number of spectra.
        radius: arcsec within which a position matches a target.
        page: spectra fetched at a time.

    Raises:
        ConfigError: a value is out of range.
    """

    release: str = "DESI-EDR"
    spectype: tuple[str, ...] = ("STAR",)
    redshift: tuple[float, float] | None = None
    ra: tuple[float, float] | None = None
    dec: tuple[float, float] | None = None
    any_warning: bool = False
    any_visit: bool = False
    min_snr: float | None = None
    limit: int | None = None
    radius: float = 1.0
    page: int = 100

    def __post_init__(self) -> None:
        if not self.release.startswith("DESI-"):
            raise ConfigError(f"{self.release!r} is not a release of DESI, such as DESI-EDR or DESI-DR1")
        if not 1 <= self.page <= RETRIEVE_LIMIT:
            raise ConfigError(f"a page must have 1 to {RETRIEVE_LIMIT} spectra, not {self.page}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"the limit must be at least 1, not {self.limit}")
        if not 0 < self.radius <= 60:
            raise ConfigError(f"the radius must be above 0 and at most 60 arcsec, not {self.radius}")
        for name, (low, top) in {"redshift": (-1.0, 20.0), "ra": (0.0, 360.0), "dec": (-90.0, 90.0)}.items():
            bounds = getattr(self, name)
            if bounds is None:
                continue
            first, last = bounds
            if not (low <= first <= top and low <= last <= top):
                raise ConfigError(f"{name} must lie between {low:g} and {top:g}, not {first:g} to {last:g}")
            if name != "ra" and first > last:
                raise ConfigError(f"the range of {name} is reversed: {first:g} to {last:g}")

    @property
    def search(self) -> dict[str, list[Any]]:
        """The constraints that the archive applies, except the position."""
        search: dict[str, list[Any]] = {"spectype": list(self.spectype)} if self.spectype else {}
        if self.redshift is not None:
            search["redshift"] = list(self.redshift)
        if not self.any_warning:
            search["redshift_warning"] = [0]
        if not self.any_visit:
            search["specprimary"] = [True]
        return search


def find(archive: Sparcl, query: DesiQuery, stars: StarList | None, say: Say) -> dict[str, Any]:
    """Find the records to fetch.

    Returns:
        {"records": metadata, "absent": [number of stars without a record, name of the first], "duplicates":
        number of records that lost their star to a nearer one}.

    Raises:
        DataError: the release has no such record.
    """
    if stars is not None and stars.sky is None:
        records = _find_by_id(archive, query, stars, say)
    else:
        records = _find_on_sky(archive, query, stars, say)
    if stars is not None:
        found = match_stars(records, stars, query.radius, query.limit)
    else:
        found = {"records": sorted(records, key=lambda record: str(record["sparcl_id"]))}
        found |= {"absent": [0, ""], "duplicates": 0}
    if not found["records"]:
        raise DataError(f"{archive.service.root}: {query.release} has no spectrum that fulfils the query")
    return found


def _find_on_sky(archive: Sparcl, query: DesiQuery, stars: StarList | None, say: Say) -> list[Record]:
    """Find records in a part of the sky, or near stars in it."""
    positions = None if stars is None else stars.sky
    return find_in_boxes(
        archive,
        sky_boxes(query.ra or (0.0, 360.0), query.dec or (-90.0, 90.0), positions),
        query.search,
        radius=query.radius / 3600.0,
        wanted=query.limit if stars is None else None,
        keep=list if positions is None else lambda records: near(records, positions, query.radius),
        say=say,
    )


def _find_by_id(archive: Sparcl, query: DesiQuery, stars: StarList, say: Say) -> list[Record]:
    """Find records by id, a few hundred at a time; numerical ids are sent as numbers."""
    records: list[Record] = []
    values = stars.values.tolist()
    for start in range(0, len(values), _IDS_PER_CALL):
        ids = values[start : start + _IDS_PER_CALL]
        sent = ids if stars.kind == "sparcl_id" else [int(value) for value in ids]
        search = {**query.search, stars.kind: sent}
        records += find_all(archive, search, archive.count(search))
        say(f"found {counted(len(records), 'record')} of {counted(start + len(ids), 'id')}")
    return list({str(record["sparcl_id"]): record for record in records if record.get("sparcl_id")}.values())


def near(records: Sequence[Record], positions: FloatArray, radius: float) -> list[Record]:
    """Return the records within `radius` arcsec of one of the positions, (k, 2) degrees."""
    at = _positions(records)
    known = np.flatnonzero(np.isfinite(at).all(axis=1))
    if not len(known) or not len(positions):
        return []
    stars = SkyCoord(at[known], unit="deg")
    _, separation, _ = stars.match_to_catalog_sky(SkyCoord(positions, unit="deg"))
    return [records[row] for row in known[np.asarray(separation.to_value(units.arcsec)) <= radius]]


def match_stars(
    records: Sequence[Record], stars: StarList, radius: float, limit: int | None
) -> dict[str, Any]:
    """Match records to stars and return them in the order of the stars, as `find`.

    Each record gets `target`, the name of its star, and on the sky `separation` in arcsec. On the sky the
    match is one to one: a star gets the nearest record. By id a star gets all records of that id, because a
    specid or targetid may have several.
    """
    duplicates = 0
    if stars.sky is not None:
        at = _positions(records)
        found = sky.match(at[:, 0], at[:, 1], stars.sky[:, 0], stars.sky[:, 1], radius)
        duplicates = len(found.duplicates)
        pairs = [
            (int(star), {**records[row], "separation": float(separation)})
            for row, star, separation in zip(found.left, found.right, found.separation, strict=True)
        ]
    else:
        row_of = {value: row for row, value in enumerate(stars.values.tolist())}
        pairs = [
            (row_of[str(record[stars.kind])], dict(record))
            for record in records
            if str(record.get(stars.kind)) in row_of
        ]
    pairs.sort(key=lambda pair: (pair[0], str(pair[1]["sparcl_id"])))
    absent = np.setdiff1d(np.arange(len(stars)), [star for star, _ in pairs])
    names = stars.names.tolist()
    return {
        "records": [{**record, "target": names[star]} for star, record in pairs][:limit],
        "absent": [len(absent), names[absent[0]] if len(absent) else ""],
        "duplicates": duplicates,
    }


def _positions(records: Sequence[Record]) -> FloatArray:
    return np.stack([column_of_floats(records, name) for name in ("ra", "dec")], axis=1)
