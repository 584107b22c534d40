import gzip
import json

import numpy as np
import pytest

from specjax.errors import DataError
from specjax.surveys import read

GRID = (3600 + 0.8 * np.arange(40)).tolist()


def record(name, **changes):
    return {
        "sparcl_id": name,
        "specid": 39627652591521181,
        "targetid": 39627652591521181,
        "data_release": "DESI-EDR",
        "spectype": "STAR",
        "redshift": 1e-4,
        "redshift_warning": 0,
        "ra": 10.0,
        "dec": -1.0,
        "wavelength": GRID,
        "flux": [1.0] * 40,
        "ivar": [4.0] * 40,
        "mask": [0] * 39 + [2],
    } | changes


def write(path, content):
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["records.json", "records.json.gz"])
@pytest.mark.parametrize(
    "wrap", [list, lambda rows: [{"status": {"success": True}}, *rows], lambda rows: {"records": rows}]
)
def test_records_are_read_with_or_without_a_header(tmp_path, name, wrap):
    spectra = read(write(tmp_path / name, wrap([record("a"), record("b", flux=[None] + [2.0] * 39)])))
    assert spectra.survey == "sparcl"
    assert spectra.id.tolist() == ["a", "b"]  # the specid is the same
    assert spectra.wavelength.shape == (40,)
    assert spectra.mask[:, -1].all()
    assert spectra.mask[:, 0].tolist() == [False, True]
    assert spectra.meta["targetid"].tolist() == ["39627652591521181"] * 2
    assert spectra.meta["zwarn"].tolist() == [0, 0]


def test_ivar_mask_and_metadata_are_optional(tmp_path):
    bare = {key: record("a")[key] for key in ("sparcl_id", "wavelength", "flux")}
    spectra = read(write(tmp_path / "r.json", [bare]))
    assert not spectra.has_ivar
    assert spectra.meta["spectype"].tolist() == [""]
    assert np.isnan(spectra.meta["ra"]).all()


def test_bad_records_are_reported_and_left_out(tmp_path, caplog):
    bad = [record("b", flux=[1.0] * 39), record("c", flux=None), record("d", ivar=["x"] * 40)]
    spectra = read(write(tmp_path / "r.json", [record("a"), *bad]))
    assert spectra.id.tolist() == ["a"]
    assert [name in line for name, line in zip("bcd", caplog.messages, strict=True)] == [True] * 3
    with pytest.raises(DataError, match=r"record 0 \(b\)"):
        read(write(tmp_path / "s.json", bad))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON list"),
        (b"<html>busy</html>", "not a JSON list"),
        (b'[{"sparcl_id": "a", "flux": [1.0', "not a JSON list"),
        (b"{}", "not a JSON list"),
        (b"[1, 2]", "not a JSON list"),
        (b"[]", "no records"),
        (json.dumps([record("a"), record("a")]).encode(), "sparcl_id a occurs more than once"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "r.json" in str(caught.value)
    assert "\n" not in str(caught.value)
