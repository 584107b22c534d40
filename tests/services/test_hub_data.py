"""Data sets of a local hub: fetched, checked, and recognised."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from specjax import cli
from specjax.errors import ConfigError, DownloadError
from specjax.services.hub_data import fetch_data
from specjax.services.specclip import TEST_DATA
from specjax.surveys import read, read_xp
from tests.services.hub_server import NOWHERE, running_hub, use

pytest.importorskip("huggingface_hub")


@pytest.fixture
def files(tmp_path):
    """Files as in the authors' test data set: one group of pairs with their source ids."""
    path = tmp_path / "pairs.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["test/source_ids"] = np.arange(4) + 4295806720
        file["test/lamost_spectra"] = (1 + 0.1 * rng.normal(size=(4, 1462))).astype(np.float32)
        file["test/gaia_spectra"] = (1 + 0.1 * rng.normal(size=(4, 343))).astype(np.float32)
    return {
        "gaia_lamost_test_only.h5": path.read_bytes(),
        "README.md": b"words",
        "more/notes.csv": b"a,b\n1,2\n",
    }


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    with running_hub() as server:
        server.add(files, TEST_DATA, "datasets")
        server.add(files, "someone/spectra", "datasets")
        yield use(server, monkeypatch, tmp_path)


def test_the_test_data_are_fetched_and_read(hub, tmp_path, capsys):
    assert cli.main(["fetch", "specclip-test-data", "-o", str(tmp_path / "data")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'data'}\n"
    assert "gaia_lamost_test_only.h5: an .h5 training file of SpecCLIP" in err
    assert "README.md: not recognised as spectra" in err
    path = tmp_path / "data" / "gaia_lamost_test_only.h5"
    assert len(read(path)) == len(read_xp(path)) == 4
    found = {file.relative_to(tmp_path / "data").as_posix() for file in (tmp_path / "data").rglob("*")}
    assert found == {"gaia_lamost_test_only.h5", "README.md", "more", "more/notes.csv"}


def test_files_by_pattern_are_fetched_once(hub, files):
    folder = fetch_data("someone/spectra", only=["*.h5"], say=lambda _: None)
    assert [path.name for path in folder.iterdir()] == ["gaia_lamost_test_only.h5"]
    hub.asked.clear()
    assert fetch_data("someone/spectra", only=["*.h5"], say=lambda _: None) == folder
    assert not any("resolve" in path for _, path in hub.asked)
    # What has been changed since is fetched again.
    (folder / "gaia_lamost_test_only.h5").write_bytes(b"0")
    fetch_data("someone/spectra", only=["*.h5"], say=lambda _: None)
    assert (folder / "gaia_lamost_test_only.h5").read_bytes() == files["gaia_lamost_test_only.h5"]


def test_troubles_are_one_line(hub, files, monkeypatch):
    data = bytearray(files["gaia_lamost_test_only.h5"])
    data[1000] ^= 1
    hub.served["gaia_lamost_test_only.h5"] = bytes(data)
    with pytest.raises(DownloadError, match=r"not the file that the hub announces|cannot fetch"):
        fetch_data("someone/spectra", only=["*.h5"])
    with pytest.raises(ConfigError, match=r"has no file \*\.fits"):
        fetch_data("someone/spectra", only=["*.fits"])
    with pytest.raises(DownloadError, match="no such repository"):
        fetch_data("someone/nothing")
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        fetch_data("nothing")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3))
    with pytest.raises(DownloadError, match=r"0\.0 GB left"):
        fetch_data("someone/spectra")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    with pytest.raises(DownloadError, match="there is no connection"):
        fetch_data("someone/spectra")


def test_names_that_lead_outside_the_folder_are_refused(hub, tmp_path):
    hub.add({"../outside.h5": b"0"}, "someone/malicious", "datasets")
    with pytest.raises(DownloadError, match="leads outside"):
        fetch_data("someone/malicious", tmp_path / "in" / "data")
    assert not (tmp_path / "in" / "outside.h5").exists()
