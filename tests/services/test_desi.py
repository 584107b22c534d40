"""Fetching from an archive that fails in many ways; time is injected, so that nothing waits."""

import gzip
import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.table import Table

from specjax import atomic, read
from specjax.errors import ConfigError, DataError, DownloadError
from specjax.services.desi import fetch_desi
from specjax.services.desi_search import DesiQuery
from tests.services import failures
from tests.services.archive_server import star, uuid

QUERY = DesiQuery(ra=(0.0, 359.0), page=4)
GRID = 3600 + 0.8 * np.arange(60)


@pytest.fixture
def fetch(tmp_path, retry):
    """Call `fetch_desi` into one folder; `said` has the lines of progress."""

    def call(query=QUERY, **options):
        options = {"out": tmp_path / "desi", "retry": retry, "say": call.said.append} | options
        return fetch_desi(query, options.pop("out"), **options)

    call.said = []
    return call


def table_of(path):
    return Table.read(path.parent / "spectra.ecsv", format="ascii.ecsv").filled(
        ""
    )  # astropy masks empty strings


def test_spectra_and_table_agree_with_the_archive(archive, fetch, waits):
    path = fetch()
    spectra = read(path)
    stars = list(archive.stars.values())
    assert spectra.id.tolist() == [s["sparcl_id"] for s in stars]
    assert spectra.survey == "desi"
    assert spectra.has_ivar
    np.testing.assert_array_equal(spectra.wavelength, GRID)
    np.testing.assert_array_equal(spectra.flux, [s["flux"] for s in stars])  # JSON keeps every digit
    np.testing.assert_array_equal(spectra.ivar, 4.0)
    assert spectra.meta["targetid"].tolist() == [str(s["targetid"]) for s in stars]
    table = table_of(path)
    assert table["id"].tolist() == spectra.id.tolist()
    assert table["targetid"].tolist() == [s["targetid"] for s in stars]  # integers, no digit lost
    assert table["ra"].unit == units.deg
    # flux over error: with ivar 4 twice the flux, exact but for the rounding of a square root
    np.testing.assert_allclose(table["snr"], 2 * np.median(spectra.flux, axis=1), rtol=1e-14)
    assert set(table["left_out"].tolist()) == {""}
    assert waits == []
    for page in sorted((path.parent / "pages").iterdir()):
        assert len(read(page)) == 4


def assert_whole(path, archive):
    spectra = read(path)
    assert spectra.id.tolist() == list(archive.stars)
    np.testing.assert_array_equal(spectra.flux, [s["flux"] for s in archive.stars.values()])


@pytest.mark.parametrize("path", ["/api/spectras/", "/api/find/", "/api/datafields/"])
@pytest.mark.parametrize("name", ["429", "cut-json", "json-null"])
def test_transient_failures_are_retried(archive, fetch, waits, name, path):
    action, _ = failures.TRANSIENT[name]
    archive.fail(action, path)
    assert_whole(fetch(), archive)
    assert len(waits) == 1
    assert sum("trying again in" in line for line in fetch.said) == 1


@pytest.mark.parametrize("name", failures.TRANSIENT | failures.FINAL)
def test_persistent_failures_are_one_line_and_lose_nothing(archive, fetch, retry, waits, tmp_path, name):
    retry = replace(retry, read=0.1 if name == "silence" else 10.0)
    action, message = (failures.TRANSIENT | failures.FINAL)[name]
    archive.fail(action, times=99, after=1)
    with pytest.raises(DownloadError, match=message) as caught:
        fetch(retry=retry)
    assert f"{archive.url}/api/spectras/" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(waits) == (0 if name in failures.FINAL else 3)
    assert [page.name for page in (tmp_path / "desi/pages").iterdir()] == ["page-00000.json.gz"]

    archive.failures.clear()
    archive.asked.clear()
    assert_whole(fetch(), archive)
    assert [len(body) for path, _, body in archive.asked if path == "/api/spectras/"] == [4, 4]
    assert archive.count("/api/find/") == 0  # the search is cached, too


@pytest.mark.parametrize("name", failures.HARMLESS)
def test_irregular_responses_are_used(archive, fetch, waits, name):
    archive.fail(failures.HARMLESS[name])
    assert_whole(fetch(), archive)
    assert waits == []


def test_waits_grow_and_honour_retry_after(archive, fetch, waits):
    archive.fail(failures.sends(503), times=2)
    archive.fail(failures.sends(429, Retry_After="70"))
    fetch()
    assert waits[:2] == [0.75, 1.5]  # 1 and 2 s, times 0.75 as the jitter is 0.5
    assert waits[2:] == [70.5]


def test_a_redirect_is_followed(archive, fetch):
    archive.fail(failures.sends(307, Location="/api/datafields/"), "/api/datafields/")
    assert_whole(fetch(), archive)


def test_an_unreachable_archive_is_an_error(fetch, retry, waits):
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/api/datafields/: the connection failed"):
        fetch(url="http://127.0.0.1:9")
    assert len(waits) == 3


RECORDS = {  # {name: (change of star 5, the reason why it is left out or None)}
    "no-flux": ({"flux": None}, "no flux"),
    "no-wavelength": ({"wavelength": None}, "no wavelength"),
    "no-ivar": ({"ivar": None}, "no inverse variance"),
    "no-mask": ({"mask": None}, None),
    "null-pixel": ({"flux": [None] + [1.0] * 59}, None),
    "nan-pixel": ({"flux": [math.nan] + [1.0] * 59}, None),
    "infinite-pixel": ({"ivar": [math.inf] + [1.0] * 59}, None),
    "negative-ivar": ({"ivar": [-1.0] + [1.0] * 59}, None),
    "all-null": ({"flux": [None] * 60}, "no usable pixel"),
    "all-nan": ({"flux": [math.nan] * 60}, "no usable pixel"),
    "all-masked": ({"mask": [2] * 60}, "no usable pixel"),
    "short-flux": ({"flux": [1.0] * 59}, "does not fit"),
    "short-ivar": ({"ivar": [1.0] * 59}, "does not fit"),
    "short-wavelength": ({"wavelength": GRID[:-1].tolist()}, "does not fit"),
    "short-mask": ({"mask": [0] * 59}, "does not fit"),
    "text-for-flux": ({"flux": "bright"}, "not a list of numbers"),
    "texts-in-flux": ({"flux": ["bright"] * 60}, "not a list of numbers"),
    "number-for-flux": ({"flux": 1.0}, "does not fit"),
    "object-for-flux": ({"flux": {"unit": "erg"}}, "not a list of numbers"),
    "lists-in-flux": ({"flux": [[1.0], [1.0, 2.0]]}, "not a list of numbers"),
    "text-for-mask": ({"mask": "none"}, "mask is not"),
    "wavelength-twice": ({"wavelength": [3600.0, *GRID[:-1]]}, "occur twice"),
    "nanometres": ({"wavelength": (GRID / 10).tolist()}, "not optical in Angstrom"),
    "another-grid": ({"wavelength": (GRID + 0.4).tolist()}, "differ from those of the others"),
    "fewer-pixels": (
        {"wavelength": GRID[:30].tolist(), "flux": [1.0] * 30, "ivar": [1.0] * 30, "mask": [0] * 30},
        "differ from those of the others",
    ),
    "another-specid": ({"specid": 7}, "its specid is 7, but find returned 39627652591521186"),
    "warning-as-text": ({"redshift_warning": "many"}, None),  # read as unknown
}


@pytest.mark.parametrize("name", RECORDS)
def test_one_bad_record_is_left_out_with_its_reason(archive, fetch, name):
    change, reason = RECORDS[name]
    inside = {"flux": "spectra.coadd.flux", "ivar": "spectra.coadd.ivar"}
    bad = {inside.get(key, key): value for key, value in change.items()}

    def spoil(answer):
        return [answer[0], *(r | bad if r["id"] == uuid(5) else r for r in answer[1:])]

    archive.fail(failures.changes(spoil), times=9)
    path = fetch()
    spectra, table = read(path), table_of(path)
    said = dict(zip(table["id"].tolist(), table["left_out"].tolist(), strict=True))
    others = [name for name in archive.stars if name != uuid(5)]
    assert {said[name] for name in others} == {""}
    assert spectra.select(others).flux.tolist() == [archive.stars[name]["flux"] for name in others]
    if reason is None:
        assert said[uuid(5)] == ""
        assert uuid(5) in spectra.id
        assert spectra.select([uuid(5)]).mask[0].sum() <= 1
    else:
        assert reason in said[uuid(5)]
        assert uuid(5) not in spectra.id
        assert any(line.startswith(f"left out: {uuid(5)}") and reason in line for line in fetch.said)


def test_two_different_records_of_one_id_are_both_left_out(archive, fetch):
    archive.fail(failures.changes(lambda answer: [*answer, {**answer[1], "redshift": 0.5}]))
    path = fetch()
    left_out = [text for text in table_of(path)["left_out"].tolist() if text]
    assert left_out == ["the archive returned two different records of it"]
    assert len(read(path)) == 11


def test_missing_records_are_requested_again_and_reported(archive, fetch):
    archive.fail(failures.changes(lambda a: [r for r in a if r.get("id") != uuid(7)]), times=99)
    path = fetch()
    assert len(read(path)) == 11
    table = table_of(path)
    assert table["left_out"][7] == "the archive returned no record of it"
    assert sum(path == "/api/spectras/" for path, _, _ in archive.asked) == 3 + 2  # requested again, twice


def test_no_usable_record_is_an_error(archive, fetch):
    for record in archive.stars.values():
        record["flux"] = record["flux"][:5]
    with pytest.raises(DataError, match="none of 12 records is usable; the first, 00000000-"):
        fetch()


def test_a_repeated_specid_is_reported_and_both_spectra_are_kept(archive, fetch):
    archive.stars[uuid(3)]["specid"] = archive.stars[uuid(8)]["specid"]
    path = fetch()
    assert "1 specids occur more than once" in " ".join(fetch.said)
    assert table_of(path)["specid_repeated"].tolist() == [row in (3, 8) for row in range(12)]
    assert_whole(path, archive)


def test_faint_spectra_are_left_out(archive, fetch):
    path = fetch(DesiQuery(ra=(0.0, 359.0), min_snr=30.0))  # star k has flux 10 + k, error 1/2
    assert read(path).id.tolist() == [uuid(k) for k in range(5, 12)]
    assert "is below 30" in table_of(path)["left_out"][0]


def test_ids_and_tables_select_spectra(archive, fetch, tmp_path):
    path = fetch(DesiQuery(), ids=[uuid(3), uuid(99), uuid(1), uuid(3)])
    assert read(path).id.tolist() == [uuid(3), uuid(1)]
    assert f"1 targets have no spectrum, the first {uuid(99)}" in fetch.said
    for column in ("targetid", "specid"):
        table = tmp_path / f"{column}.csv"
        wanted = [archive.stars[uuid(k)][column] for k in (4, 2)]
        Table({"id": ["d", "b"], column: wanted}).write(table)
        path = fetch(DesiQuery(), targets=table, out=tmp_path / column)
        assert read(path).id.tolist() == [uuid(4), uuid(2)]
        assert table_of(path)["target"].tolist() == ["d", "b"]
        sent = [c for _, _, body in archive.asked if isinstance(body, dict) for c in body["search"]]
        assert [column, *wanted] in sent  # as integers
    listed = tmp_path / "ids.txt"
    listed.write_text(f"{uuid(6)}\n{uuid(0)}\n")
    assert read(fetch(DesiQuery(), targets=listed, out=tmp_path / "txt")).id.tolist() == [uuid(6), uuid(0)]


def test_positions_are_matched_one_to_one(archive, fetch, tmp_path):
    arcsec = 1 / 3600
    archive.stars[uuid(20)] = star(20, ra=5.0 + 0.3 * arcsec, dec=0.0)  # 0.3 arcsec from star 5
    archive.stars[uuid(21)] = star(21, ra=359.9999999, dec=0.0)  # across the zero of right ascension
    del archive.stars[uuid(0)]
    table = Table({"id": ["x", "y", "z", "w"], "ra": [5.0, 0.0, 9.0 + 3 * arcsec, 7.0], "dec": [0.0] * 4})
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    path = fetch(DesiQuery(), targets=tmp_path / "t.ecsv")
    found = table_of(path)
    assert read(path).id.tolist() == [uuid(5), uuid(21), uuid(7)]
    assert found["target"].tolist() == ["x", "y", "w"]
    assert found["separation"].unit == units.arcsec
    assert found["separation"].max() < 1.0
    assert "1 spectra lost their target to a nearer one" in fetch.said
    assert "1 targets have no spectrum, the first z" in fetch.said


def test_constraints_reach_the_archive(archive, fetch):
    archive.stars[uuid(2)]["spectype"] = "QSO"
    archive.stars[uuid(3)]["redshift_warning"] = 4
    archive.stars[uuid(4)]["specprimary"] = False
    archive.stars[uuid(5)]["data_release"] = "SDSS-DR17"
    query = DesiQuery(ra=(10.0, 6.0), dec=(0.0, 0.0), redshift=(0.0, 7.5e-5))
    assert read(fetch(query)).id.tolist() == [uuid(0), uuid(1), uuid(6)]


def test_a_limit_ends_the_search(archive, fetch):
    assert len(read(fetch(DesiQuery(limit=5)))) == 5


def interrupt_after(page):
    def say(line):
        if line.startswith(f"page {page} of"):
            raise KeyboardInterrupt

    return say


def test_an_interrupted_download_is_resumed(archive, fetch):
    with pytest.raises(KeyboardInterrupt):
        fetch(say=interrupt_after(2))
    assert archive.count("/api/spectras/") == 2
    assert_whole(fetch(), archive)
    assert archive.count("/api/spectras/") == 3
    assert archive.count("/api/find/") == 2  # a count and a list, once
    before = len(archive.asked)
    assert_whole(fetch(), archive)
    assert len(archive.asked) == before  # a complete folder sends no requests


@pytest.mark.parametrize("when", ["page-00001", "found", "spectra", "query"])
def test_a_kill_during_a_write_leaves_no_partial_file(archive, fetch, monkeypatch, tmp_path, when):
    from specjax import atomic

    replace = atomic.os.replace

    def killed(source, target):
        if when in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert not list(tmp_path.glob(f"**/{when}*"))
    monkeypatch.undo()
    assert_whole(fetch(url=archive.url), archive)


def test_damaged_pages_are_fetched_again_and_leftovers_removed(archive, fetch):
    pages = fetch().parent / "pages"
    whole = (pages / "page-00001.json.gz").read_bytes()
    (pages / "page-00001.json.gz").write_bytes(whole[:-50])
    (pages / "page-00002.json.gz").write_bytes(gzip.compress(b'{"asked": []}'))
    killed = (
        f"{atomic._machine()}.{os.getpid()}.1.abcdefgh"  # another process, which had the number of this one
    )
    (pages / f".page-00002.json-{killed}.gz").write_bytes(b"half")
    (pages.parent / f".spectra-{killed}.h5").write_bytes(b"half")
    archive.asked.clear()
    assert_whole(fetch(), archive)
    assert archive.count("/api/spectras/") == 2
    assert len(list(pages.iterdir())) == 3
    assert not list(pages.parent.glob(".*"))


def test_a_folder_can_be_resumed_after_a_kill_during_the_first_write(archive, fetch, tmp_path):
    (tmp_path / "desi").mkdir()
    (tmp_path / "desi/.query-xyz.json").write_text("{")
    assert_whole(fetch(), archive)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (DesiQuery(ra=(0.0, 359.0), page=5), "page was 4, now 5"),
        (DesiQuery(ra=(0.0, 350.0), page=4), r"ra was \[0.0, 359.0\], now \[0.0, 350.0\]"),
        (DesiQuery(ra=(0.0, 359.0), page=4, min_snr=3.0), "min_snr was None, now 3.0"),
    ],
)
def test_a_different_query_in_the_same_folder_is_refused(archive, fetch, query, message):
    path = fetch()
    with pytest.raises(ConfigError, match=f"a different query .*{message}"):
        fetch(query)
    assert_whole(path, archive)


def test_a_changed_table_of_targets_is_a_different_query(archive, fetch, tmp_path):
    (tmp_path / "t.csv").write_text("ra,dec\n5.0,0.0\n")
    fetch(DesiQuery(), targets=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("ra,dec\n6.0,0.0\n")
    with pytest.raises(ConfigError, match="a different query"):
        fetch(DesiQuery(), targets=tmp_path / "t.csv")


def test_foreign_and_unwritable_folders_are_refused(archive, fetch, tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("one")
    with pytest.raises(ConfigError, match="thesis holds something other than a download"):
        fetch(out=tmp_path / "thesis")
    with pytest.raises(ConfigError, match=re.escape("chapter.txt holds something other")):
        fetch(out=tmp_path / "thesis/chapter.txt")
    with pytest.raises(DownloadError, match=r"cannot write .*chapter\.txt/desi"):
        fetch(out=tmp_path / "thesis/chapter.txt/desi")
    assert archive.asked == []

    def full(path, data):
        raise OSError(28, "No space left on device")

    fetch(say=lambda line: None, out=tmp_path / "desi")
    (tmp_path / "desi/pages/page-00002.json.gz").unlink()
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DownloadError, match=r"cannot write .*page-00002.json.gz: No space left"):
        fetch()
    monkeypatch.undo()
    assert len(list((tmp_path / "desi/pages").iterdir())) == 2
    assert_whole(fetch(url=archive.url), archive)


@pytest.mark.parametrize("lie", [1, 3])
def test_fewer_records_than_counted_are_requested_twice(archive, fetch, lie):
    archive.fail(failures.changes(lambda answer: answer[:-1]), "/api/find/", times=lie, after=1)
    if lie == 1:
        assert_whole(fetch(), archive)
    else:
        with pytest.raises(DataError, match="counts 12 records but twice returned only 11"):
            fetch()


@pytest.mark.parametrize(
    "answer", [[{"status": {}}], [{"status": {}}, {"count": "12"}], [{"status": {}}, {}]]
)
def test_an_invalid_count_is_an_error(archive, fetch, answer):
    archive.fail(failures.sends(200, json.dumps(answer).encode()), "/api/find/", times=99)
    with pytest.raises(DownloadError, match="the response has no count"):
        fetch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DesiQuery(release="SDSS-DR17"), "not a release of DESI"),
        (lambda: DesiQuery(page=0), "1 to 24000"),
        (lambda: DesiQuery(page=24_001), "1 to 24000"),
        (lambda: DesiQuery(limit=0), "at least 1"),
        (lambda: DesiQuery(radius=0.0), "at most 60"),
        (lambda: DesiQuery(dec=(-100.0, 0.0)), "dec must lie between"),
        (lambda: DesiQuery(redshift=(0.1, 0.0)), "reversed: 0.1 to 0"),
    ],
)
def test_invalid_options_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_invalid_queries_are_refused(archive, fetch, tmp_path):
    with pytest.raises(ConfigError, match="every star of DESI-EDR"):
        fetch(DesiQuery(), out=tmp_path / "all")
    with pytest.raises(ConfigError, match=r"no release 'DESI-XYZ'; it has DESI-EDR, SDSS-DR17"):
        fetch(DesiQuery(release="DESI-XYZ", limit=1))
    assert len(read(fetch(DesiQuery(limit=1)))) == 1  # the corrected query can use the folder
    with pytest.raises(ConfigError, match="not both"):
        fetch(ids=[uuid(1)], targets=tmp_path / "t.csv", out=tmp_path / "both")
    with pytest.raises(ConfigError, match="combined with ids"):
        fetch(ids=[uuid(1)], out=tmp_path / "ids")
    with pytest.raises(ConfigError, match=r"http\(s\)://host/path, not 'ftp://x/api'"):
        fetch(url="ftp://x", out=tmp_path / "other")
    with pytest.raises(DataError, match="has no spectrum that fulfils the query"):
        fetch(DesiQuery(), ids=[uuid(99)], out=tmp_path / "none")
    archive.stars[uuid(99)] = star(99)  # an empty result is not cached
    assert read(fetch(DesiQuery(), ids=[uuid(99)], out=tmp_path / "none")).id.tolist() == [uuid(99)]
