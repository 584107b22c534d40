"""`specjax fetch` from the command line."""

import sys
from pathlib import Path

import pytest

from specjax import cli
from specjax.surveys import read
from tests.services.archive_server import serve, star, uuid


@pytest.fixture
def archive(monkeypatch):
    """Twelve stars on a local server that the environment names as the archive."""
    with serve([star(number) for number in range(12)], monkeypatch) as server:
        yield server


def run(line, capsys):
    status = cli.main(line.split())
    return status, *capsys.readouterr()


def test_ranges_with_negative_bounds(archive, tmp_path, capsys):
    status, out, err = run(f"fetch desi --ra 2 9 --dec -1.5 1e0 --page 5 --out {tmp_path}/desi", capsys)
    assert status == 0
    assert out == f"{tmp_path}/desi/spectra.h5\n"
    assert "page 2 of 2: 8 of 8, 0 left out" in err
    assert read(Path(out.strip())).id.tolist() == [uuid(number) for number in range(2, 10)]


def test_ids_and_options_reach_the_query(archive, tmp_path, capsys):
    ids = f"{uuid(4)} {uuid(2)}"
    line = f"fetch desi {ids} --spectype STAR QSO --redshift 0 3e-5 --any-visit --any-warning -o {tmp_path}/a"
    assert run(line, capsys)[0] == 0
    assert read(tmp_path / "a/spectra.h5").id.tolist() == [uuid(2)]  # star 4 is too fast
    search = {constraint[0]: constraint[1:] for constraint in archive.asked[1][2]["search"]}
    assert search["spectype"] == ["STAR", "QSO"]
    assert "redshift_warning" not in search
    assert "specprimary" not in search


def test_addresses_with_and_without_api(archive, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SPECJAX_SPARCL_URL")
    for number, end in enumerate(("", "/", "/api", "/api/")):
        line = f"fetch desi --limit 2 --url {archive.url}{end} --out {tmp_path}/{number}"
        assert run(line, capsys)[0] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fetch desi --out {tmp}/x", "every star of DESI-EDR"),
        ("fetch desi --release SDSS-DR17 --limit 1 --out {tmp}/x", "not a release of DESI"),
        ("fetch desi --targets {tmp}/none.csv --out {tmp}/x", "no table at"),
        ("fetch desi --limit 1 --url nonsense --out {tmp}/x", "not 'nonsense/api'"),
        ("fetch gaia-xp --out {tmp}/x", "give source ids"),
        ("fetch gaia-xp 12 --out {tmp}/x", "pip install 'specjax[gaia]'"),
    ],
)
def test_a_users_error_is_one_line(archive, tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.setitem(sys.modules, "gaiaxpy", None)
    status, out, err = run(line.format(tmp=tmp_path), capsys)
    assert (status, out) == (1, "")
    assert err.startswith("specjax: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("line", ["fetch", "fetch nothing", "fetch desi", "fetch desi --ra 1 --out x"])
def test_usage_errors_leave_with_status_two(line, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2
