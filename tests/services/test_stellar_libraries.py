"""Fetching a package of the same name and layout with pip from a local folder, without network."""

import hashlib
import sys
import zipfile

import pytest

from specjax.errors import DownloadError
from specjax.services import packages, stellar_libraries

COUNTS = {"miles": 2, "stelib": 1, "mastarhc_v2": 1}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip accepts, with a few small files in place of the spectra."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / stellar_libraries.WHEEL
    inside = "mangadap/data/spectral_templates"
    info = "sdss_mangadap-4.5.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, count in COUNTS.items():
            for number in range(count):
                archive.writestr(f"{inside}/{folder}/s{number}.fits", f"{folder} {number}")
        archive.writestr(f"{inside}/miles/README", "read me")
        archive.writestr(f"{inside}/miles/omit/s9.fits", "omitted")
        archive.writestr(f"{inside}/other/s0.fits", "other")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sdss-mangadap\nVersion: 4.5.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(stellar_libraries, "FOLDERS", COUNTS)
    monkeypatch.setattr(stellar_libraries, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


EXPECTED = ["mastarhc_v2/s0.fits", "miles/README", "miles/s0.fits", "miles/s1.fits", "stelib/s0.fits"]


def test_pip_downloads_the_three_folders_only(wheel, tmp_path, monkeypatch, capfd):
    folder = stellar_libraries.fetch_stellar_libraries(tmp_path / "cache")
    assert names(folder) == EXPECTED
    assert stellar_libraries.have_stellar_libraries(tmp_path / "cache")
    out, err = capfd.readouterr()
    assert out == ""
    assert "unpacking" in err
    monkeypatch.setattr(packages, "_run_pip", lambda *_, **__: pytest.fail("fetched again"))
    assert stellar_libraries.fetch_stellar_libraries(tmp_path / "cache") == folder


def test_a_wheel_on_disk_is_used_and_kept(wheel, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(packages, "_run_pip", lambda *_, **__: pytest.fail("downloaded"))
    folder = stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False, wheel=wheel)
    assert names(folder) == EXPECTED
    assert wheel.is_file()
    assert capfd.readouterr() == ("", "")


def test_the_environment_sets_the_cache(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECJAX_CACHE", str(tmp_path / "elsewhere"))
    folder = stellar_libraries.fetch_stellar_libraries(progress=False, wheel=wheel)
    assert folder.parent == tmp_path / "elsewhere"


def test_interrupted_unpacking_is_resumed_without_a_second_download(wheel, tmp_path, monkeypatch):
    unpack, calls = stellar_libraries._unpack, []

    def interrupt(source, target, count):
        if target.name == "stelib" and len(calls) == 0:
            calls.append(target)
            raise KeyboardInterrupt
        unpack(source, target, count)

    monkeypatch.setattr(stellar_libraries, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False)
    assert not stellar_libraries.have_stellar_libraries(tmp_path / "cache")
    monkeypatch.setattr(packages, "_run_pip", lambda *_, **__: pytest.fail("downloaded again"))
    folder = stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False)
    assert names(folder) == EXPECTED


def test_an_incomplete_library_is_unpacked_again(wheel, tmp_path):
    folder = stellar_libraries.fetch_stellar_libraries(tmp_path, progress=False, wheel=wheel)
    (folder / "miles" / "s1.fits").unlink()
    assert not stellar_libraries.have_stellar_libraries(tmp_path)
    stellar_libraries.fetch_stellar_libraries(tmp_path, progress=False, wheel=wheel)
    assert names(folder) == EXPECTED


def test_a_file_with_another_hash_is_refused_and_leaves_nothing(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(stellar_libraries, "SHA256", "0" * 64)
    for chosen in (wheel, None):
        with pytest.raises(DownloadError, match="not the expected file"):
            stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False, wheel=chosen)
    assert not names(tmp_path / "cache")


def test_a_wheel_that_lacks_spectra_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(stellar_libraries, "FOLDERS", {**COUNTS, "miles": 3})
    with pytest.raises(DownloadError, match="does not contain the 3 spectra of miles"):
        stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False, wheel=wheel)
    assert not names(tmp_path / "cache")


def test_a_missing_package_is_one_line(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError, match="pip could not download sdss-mangadap") as caught:
        stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value)
    assert not names(tmp_path / "cache")


def test_a_missing_pip_is_one_line_with_the_remedy(wheel, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(DownloadError, match="ensurepip"):
        stellar_libraries.fetch_stellar_libraries(tmp_path / "cache", progress=False)


def test_an_unwritable_cache_is_one_line(wheel, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot store"):
        stellar_libraries.fetch_stellar_libraries(tmp_path / "file", progress=False, wheel=wheel)


def test_a_missing_wheel_is_one_line(tmp_path):
    with pytest.raises(DownloadError, match="does not exist"):
        stellar_libraries.fetch_stellar_libraries(tmp_path, progress=False, wheel=tmp_path / "none.whl")
