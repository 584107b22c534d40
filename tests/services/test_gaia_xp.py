"""Fetching XP spectra from a substitute for the archive, in the forms of GaiaXPy and DataLink."""

import sys
import types
import zipfile

import numpy as np
import pytest
from astropy import units
from astropy.table import Table

from specjax.errors import ConfigError, DataError, DownloadError
from specjax.preprocess import to_gaia_xp
from specjax.services import gaia_archive
from specjax.services.gaia_xp import fetch_gaia_xp
from specjax.surveys import read
from specjax.wavelength import GAIA_XP_WAVELENGTH

IDS = [4408087461749558912 + 7 * k for k in range(7)]  # beyond 2**53, which a float cannot represent
ERROR = np.full(343, 2e-18)


def flux(source):
    return 1e-16 * (1 + (source % 97) + np.arange(343) / 343)


class LocalSource:
    """A source that returns {source_id: (flux, error)} in reversed order, or its next failure."""

    def __init__(self, has=IDS):
        self.has, self.calls, self.failures = has, [], []

    def __call__(self, ids):
        self.calls.append(list(ids))
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure(ids)
        return {source: (flux(source), ERROR) for source in reversed(ids) if source in self.has}


@pytest.fixture
def fetch(tmp_path, retry):
    def call(source, **options):
        options = {"ids": [str(name) for name in IDS], "page": 3, "out": tmp_path / "xp"} | options
        return fetch_gaia_xp(options.pop("out"), source=source, retry=retry, say=call.said.append, **options)

    call.said = []
    return call


def assert_whole(path, ids=IDS):
    spectra = read(path)
    assert spectra.id.tolist() == [str(source) for source in ids]
    np.testing.assert_array_equal(spectra.wavelength, GAIA_XP_WAVELENGTH)
    np.testing.assert_array_equal(spectra.flux, [flux(source) for source in ids])
    np.testing.assert_allclose(spectra.ivar, 2.5e35, rtol=1e-14)  # one rounding of a square


def test_spectra_come_in_the_order_of_the_ids_as_three_files(fetch):
    source = LocalSource()
    path = fetch(source)
    assert source.calls == [IDS[:3], IDS[3:6], IDS[6:]]
    assert_whole(path)
    assert_whole(path.parent / "gaia_xp.fits")
    table = Table.read(path.parent / "gaia_xp.fits")
    assert table["flux"].unit == units.Unit("W / (m2 nm)")
    assert table["source_id"].tolist() == IDS
    assert (to_gaia_xp(read(path)).meta["flag"] == "good").all()


def test_missing_spectra_are_requested_again_and_reported(fetch):
    source = LocalSource(has=[name for name in IDS if name != IDS[4]])
    source.failures = [lambda ids: {ids[1]: (flux(ids[1]), ERROR), 99: (flux(99), ERROR)}]
    path = fetch(source)
    assert_whole(path, [name for name in IDS if name != IDS[4]])
    assert source.calls[1] == [IDS[0], IDS[2]]
    table = Table.read(path.parent / "spectra.ecsv").filled("")
    assert table["source_id"].tolist() == IDS
    assert table["left_out"][4] == "the archive has no XP spectrum of it"
    assert any(str(IDS[4]) in line and "1 sources are left out" in line for line in fetch.said)


@pytest.mark.parametrize("number", [0, 342, 344])
def test_spectra_of_another_length_are_left_out(fetch, number):
    source = LocalSource()
    source.failures = [lambda ids: {s: (np.ones(number if s == IDS[1] else 343), ERROR) for s in ids}]
    path = fetch(source)
    assert read(path).id.tolist() == [str(name) for name in IDS if name != IDS[1]]


def test_invalid_pixels_are_masked(fetch):
    source = LocalSource()
    bad = np.ma.masked_less(flux(IDS[0]), 1.005 * flux(IDS[0])[0])
    nan = np.where(np.arange(343) == 7, np.nan, ERROR)
    source.failures = [lambda ids: {s: (bad, nan) for s in ids}]
    mask = read(fetch(source)).mask[0]
    assert mask[7]
    assert mask.sum() == bad.mask.sum() + (not bad.mask[7])


FAILURE = gaia_archive.TransientError("the Gaia archive fails (503)")


def test_transient_failures_are_retried_and_persistent_ones_lose_nothing(fetch, waits, tmp_path):
    source = LocalSource()
    source.failures = [FAILURE, FAILURE]
    assert_whole(fetch(source))
    assert waits == [0.75, 1.5]
    source = LocalSource()
    source.failures = [source.__call__, *[FAILURE] * 4]
    source.failures[0] = lambda ids: {s: (flux(s), ERROR) for s in ids}
    with pytest.raises(DownloadError, match=r"Gaia XP: the Gaia archive fails \(503\) \(tried 4 times\)"):
        fetch(source, out=tmp_path / "again")
    source.calls.clear()
    assert_whole(fetch(source, out=tmp_path / "again"))
    assert source.calls == [IDS[3:6], IDS[6:]]
    assert_whole(fetch(None, out=tmp_path / "again"))  # a complete folder sends no requests


def test_several_ids_may_share_a_source(fetch, tmp_path):
    table = Table({"id": ["a", "b", "c", "d"], "gaia_source_id": [str(IDS[0]), "", str(IDS[1]), str(IDS[0])]})
    table.write(tmp_path / "labels.ecsv", format="ascii.ecsv")
    source = LocalSource()
    path = fetch(source, ids=(), targets=tmp_path / "labels.ecsv")
    assert source.calls == [IDS[:2]]
    spectra = read(path)
    assert sorted(spectra.id.tolist()) == ["a", "c", "d"]
    np.testing.assert_array_equal(spectra.select(["d"]).flux, [flux(IDS[0])])
    assert spectra.select(["d"]).meta["source_id"].tolist() == [str(IDS[0])]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ids": ["12x"]}, DataError, "'12x' is not a whole number"),
        ({"ids": ()}, ConfigError, "give source ids or a table"),
        ({"page": 5001}, ConfigError, "1 to 5000"),
        ({"ids": ["99"]}, DataError, "none of 1 sources is usable; the first: the archive has no XP"),
    ],
)
def test_invalid_queries_are_refused(fetch, options, error, message):
    with pytest.raises(error, match=message):
        fetch(LocalSource(), **options)


def test_a_page_without_spectra_is_requested_again(fetch):
    source = LocalSource()
    source.failures = [lambda ids: {}]
    assert_whole(fetch(source), IDS[3:])
    source.calls.clear()
    assert_whole(fetch(source))
    assert source.calls == [IDS[:3]]


def test_other_ids_in_the_same_folder_are_refused(fetch):
    fetch(LocalSource())
    with pytest.raises(ConfigError, match="a different query"):
        fetch(LocalSource(), ids=[str(IDS[0])])


def module(monkeypatch, name, **content):
    for part in (name.partition(".")[0], name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    vars(sys.modules[name]).update(content)


def gaiaxpy(monkeypatch, outcome):
    asked = []

    def calibrate(input_object, sampling=None, save_file=True):
        asked.append((input_object, sampling, save_file))
        print("Running query...")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, sampling

    module(monkeypatch, "gaiaxpy", calibrate=calibrate)
    return asked


def test_gaiaxpy_samples_343_points_and_writes_no_file(monkeypatch, capsys):
    table = {"source_id": IDS[:2], "flux": [flux(s) for s in IDS[:2]], "flux_error": [ERROR] * 2}
    asked = gaiaxpy(monkeypatch, table)
    found = gaia_archive.calibrated(IDS[:2])
    ((ids, sampling, save_file),) = asked
    assert ids == IDS[:2]
    assert all(type(source) is int for source in ids)
    np.testing.assert_array_equal(sampling * 10, GAIA_XP_WAVELENGTH)
    assert save_file is False
    np.testing.assert_array_equal(found[IDS[1]][0], flux(IDS[1]))
    assert capsys.readouterr().out == ""  # stdout is for results only


@pytest.mark.parametrize("name", ["calibrated", "sampled"])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (ConnectionResetError("reset"), gaia_archive.TransientError),
        (TimeoutError("timed out"), gaia_archive.TransientError),
        (zipfile.BadZipFile("File is not a zip file"), gaia_archive.TransientError),
        (ValueError("bad argument"), DownloadError),
    ],
)
def test_exceptions_of_the_packages_are_converted(monkeypatch, name, failure, error):
    gaiaxpy(monkeypatch, failure)
    astroquery(monkeypatch, failure)
    with pytest.raises(error, match=str(failure)):
        getattr(gaia_archive, name)(IDS)


def test_sources_without_coefficients_are_no_error(monkeypatch):
    gaiaxpy(monkeypatch, ValueError("No continuous BP/RP data found for the given sources."))
    assert gaia_archive.calibrated(IDS) == {}


def astroquery(monkeypatch, outcome):
    class Gaia:
        @staticmethod
        def load_data(**options):
            assert options["retrieval_type"] == "XP_SAMPLED"
            assert all(type(source) is int for source in options["ids"])
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    module(monkeypatch, "astroquery.gaia", Gaia=Gaia)


def individual(source):
    nm = GAIA_XP_WAVELENGTH / 10
    return Table({"wavelength": nm, "flux": flux(source), "flux_error": ERROR})


class Parsed:
    """A table of a VOTable as astropy parses it."""

    def __init__(self, table):
        self.to_table = lambda: table


RAW = Table({"source_id": IDS[:2], "flux": [flux(s) for s in IDS[:2]], "flux_error": [ERROR] * 2})


@pytest.mark.parametrize(
    "files",
    [
        {"XP_SAMPLED_RAW.fits": [RAW]},
        {"XP_SAMPLED_RAW.xml": [Parsed(RAW)]},
        {f"XP_SAMPLED-Gaia DR3 {s}.xml": [Parsed(individual(s))] for s in IDS[:2]},
        {f"XP_SAMPLED-Gaia DR3 {s}.fits": [individual(s)] for s in IDS[1::-1]},
    ],
    ids=["raw", "raw-votable", "individual-votable", "individual"],
)
def test_every_structure_of_datalink_is_read(monkeypatch, files):
    astroquery(monkeypatch, files)
    found = gaia_archive.sampled(IDS[:2])
    assert set(found) == set(IDS[:2])
    for source, (values, error) in found.items():
        np.testing.assert_array_equal(values, flux(source))
        np.testing.assert_array_equal(error, ERROR)


def test_other_tables_are_an_error(monkeypatch):
    astroquery(monkeypatch, {"EPOCH.fits": [Table({"flux": [[1.0, 2.0]], "time": [1.0]})]})
    with pytest.raises(DataError, match=r"EPOCH\.fits of .* has no column source_id, flux_error"):
        gaia_archive.sampled(IDS)


@pytest.mark.parametrize(("name", "package"), [("calibrated", "gaiaxpy"), ("sampled", "astroquery.gaia")])
def test_a_missing_extra_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'specjax\[gaia\]'"):
        getattr(gaia_archive, name)(IDS)
