"""Fetching the published files from a folder and from a local server with the interface of the hub."""

import sys

import pytest

import specjax
from checkpoints_convert import convert
from specjax.errors import ConfigError, DownloadError, ModelError
from specjax.services.specclip import _target, fetch_specclip
from tests.checkpoints_convert.smallest import small_model
from tests.services.hub_server import REPOSITORY, hub


@pytest.fixture
def files(tmp_path):
    """An encoder, a label head and two other files, by their names in a repository."""
    encoder = small_model(tmp_path / "encoder").read_bytes()
    head = small_model(tmp_path / "head", "mlp2").read_bytes()
    return {
        "encoders/xp_encoder_mlp.ckpt": encoder,
        "downstream_models/lrs/mlp/feh.pt": head,
        "downstream_models/lrs/sbi/teff.pt": b"another thing",
        "README.md": b"words",
    }


@pytest.fixture
def fetch(tmp_path):
    """Call `fetch_specclip`; `said` has the lines of progress."""

    def call(source, **options):
        call.said.clear()
        return fetch_specclip(str(source), tmp_path / "out", convert=convert, say=call.said.append, **options)

    call.said = []
    return call


def check(out, said):
    assert out.name == "out"
    encoder = specjax.load(out / "encoders" / "xp_encoder_mlp")
    assert encoder.config.xp_autoencoder.latent_dim == 4
    assert "mlp2" in specjax.load(out / "downstream_models" / "lrs" / "mlp" / "feh").params
    assert any("sbi/teff.pt: left out" in line for line in said)
    assert sorted(path.name for path in out.iterdir()) == ["downstream_models", "encoders"]


def test_files_of_a_folder_are_converted_once(tmp_path, files, fetch):
    for name, data in files.items():
        path = tmp_path / "downloaded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    check(fetch(tmp_path / "downloaded"), fetch.said)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("weights.safetensors")}
    fetch(tmp_path / "downloaded")
    assert sum("already in" in line for line in fetch.said) == len(before) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    # A different file under an old name is converted again.
    (tmp_path / "downloaded/encoders/xp_encoder_mlp.ckpt").write_bytes(
        files["downstream_models/lrs/mlp/feh.pt"]
    )
    fetch(tmp_path / "downloaded", only=["encoders/*"])
    assert "mlp2" in specjax.load(tmp_path / "out" / "encoders" / "xp_encoder_mlp").params


def test_no_matching_file_and_no_network_are_errors(tmp_path, fetch):
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded" / "a.ckpt").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"has no file \*\.pt"):
        fetch(tmp_path / "downloaded", only=["*.pt"])
    with pytest.raises(ModelError, match="none of the 1 files"):
        fetch(tmp_path / "downloaded")


@pytest.mark.parametrize("name", ["../a.ckpt", "/etc/a.ckpt", "a/../../b.ckpt", "a\\..\\b.ckpt"])
def test_names_that_lead_outside_the_folder_are_refused(tmp_path, name):
    with pytest.raises(DownloadError, match="leads outside"):
        _target(tmp_path, name)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A temporary cache of the hub library."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)


@pytest.mark.usefixtures("hub_cache")
def test_files_of_a_repository_are_converted(files, fetch):
    with hub(files) as (address, asked):
        check(fetch(REPOSITORY, endpoint=address), fetch.said)
    assert not any("README" in path for _, path in asked)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["encoders/xp_encoder_mlp.ckpt", "downstream_models/lrs/mlp/feh.pt"])
def test_a_file_with_another_hash_is_refused(tmp_path, files, fetch, name):
    other = bytearray(files[name])
    other[100] ^= 1
    with (
        hub(files, {name: bytes(other)}) as (address, _),
        pytest.raises(DownloadError, match=r"not the file that the hub announces|cannot fetch"),
    ):
        fetch(REPOSITORY, endpoint=address, only=[name])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("hub_cache")
def test_a_missing_repository_is_one_line(files, fetch):
    with hub(files) as (address, _):
        for source in ("someone/else", "no name of a repository at all"):
            with pytest.raises(DownloadError, match="cannot fetch") as caught:
                fetch(source, endpoint=address)
            assert "\n" not in str(caught.value)


def test_a_missing_hub_library_is_named(monkeypatch, fetch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"pip install 'specjax\[hub\]'"):
        fetch(REPOSITORY)
