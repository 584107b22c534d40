"""Files with bad spectra, from reading to the model's input: each is refused, flagged or handled correctly.

Every case is written as a file, read and resampled to the LAMOST grid. Either it is refused with a message of
one line, or its spectrum is flagged, or its unmasked pixels equal those of the same star without the defect.
"""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

import specjax
from specjax import lora
from specjax.adapt.predict import predict
from specjax.errors import DataError, SpecjaxError
from specjax.prepare import chunks
from specjax.prepare.plan import Options, Source, report_medium
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read
from tests.surveys.bad_spectra import CASES, FLUX, GRID, IVAR, SOME, N, put
from tests.synthetic import quick_compilation

CLEAN = to_lamost(Spectra.build(GRID, FLUX, IVAR))


def test_there_are_at_least_sixty_cases_with_unique_names():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_is_refused_flagged_or_correct(case, tmp_path):
    path = case.make(tmp_path)
    if case.refused:
        with pytest.raises(SpecjaxError, match=case.refused) as caught:
            to_lamost(read(path, **case.read))
        assert "\n" not in str(caught.value)
        return
    grid = to_lamost(read(path, **case.read))
    assert grid.meta["flag"].tolist() == [case.flag]
    assert np.isfinite(grid.flux).all()
    assert np.isfinite(grid.ivar).all()
    if case.flag in ("good", "masked_fraction"):
        assert not grid.mask.all()
        # Pixels beside a masked one are excluded: they average the input pixels that remain.
        whole = ~(grid.mask | np.roll(grid.mask, 1, axis=1) | np.roll(grid.mask, -1, axis=1) | CLEAN.mask)
        np.testing.assert_allclose(grid.flux[whole], CLEAN.flux[whole], atol=case.atol)


def test_bad_files_do_not_stop_a_folder(tmp_path, caplog):
    """All LAMOST cases in one folder: the refused files are reported, the others are read."""
    cases = [case for case in CASES if case.file in ("s.fits", "s.fits.gz") and "LAMOST" in case.name]
    cases = [case for case in cases if not case.read]
    for number, case in enumerate(cases):
        case.write(tmp_path / f"{number:02d}-{case.file}")
    (tmp_path / "99-text.fits").write_text("no FITS")
    with caplog.at_level(logging.WARNING):
        spectra = read(tmp_path)
    good = [number for number, case in enumerate(cases) if not case.refused]
    assert [int(name[:2]) for name in spectra.id] == good
    assert len(caplog.messages) == len(cases) - len(good) + 1
    flags = to_lamost(spectra).meta["flag"].tolist()
    assert flags == [case.flag for case in cases if not case.refused]


@pytest.mark.parametrize("name", ["spectrum.npz", "s.csv"])
def test_an_undeclared_medium_is_reported_once(name, tmp_path, caplog):
    """Air wavelengths taken for vacuum cannot be detected: 84 km/s might be the star's velocity."""
    case = next(case for case in CASES if case.name == {"spectrum.npz": "bytes as ids", "s.csv": "csv"}[name])
    path = case.make(tmp_path)
    assert [read(path).medium, read(path).medium] == ["vacuum", "vacuum"]
    assert [
        f"{path} does not declare whether its wavelengths are in vacuum or air" in m for m in caplog.messages
    ] == [True]
    caplog.clear()
    assert read(case.make(tmp_path), wavelength_medium="air").medium == "air"
    assert not caplog.messages


def _undeclared(folder, name="s.npz", **declared):
    np.savez(folder / name, wavelength=GRID, flux=FLUX, **declared)
    return folder / name


def _source(path):
    return Source(path, path.stat().st_size)


def test_a_medium_and_a_unit_can_be_assumed_for_what_is_not_declared(tmp_path, caplog):
    """As an adapter knows them; what a file or an option declares is not touched."""
    bare = _undeclared(tmp_path)
    sure = _undeclared(tmp_path, "sure.npz", wavelength_medium="vacuum", wavelength_unit="angstrom")
    options = Options(assumed_medium="air", assumed_unit="nm")
    assert chunks._read(_source(sure), options).medium == "vacuum"
    np.testing.assert_array_equal(chunks._read(_source(sure), options).wavelength, GRID)
    assert chunks._read(_source(bare), options).medium == "air"
    np.testing.assert_allclose(chunks._read(_source(bare), options).wavelength, 10 * GRID)
    stated = dataclasses.replace(options, wavelength_medium="vacuum", wavelength_unit="angstrom")
    assert chunks._read(_source(bare), stated).medium == "vacuum"
    assert not caplog.messages


def test_a_run_says_once_which_medium_it_takes(tmp_path, caplog):
    (tmp_path / "sure").mkdir()
    sure = _undeclared(tmp_path / "sure", wavelength_medium="air")
    sources = [_source(sure), *(_source(_undeclared(tmp_path, f"{k}.npz")) for k in range(3))]
    said = []
    report_medium(sources, Options(assumed_medium="air"), said.append)
    assert said == [
        f"{sources[1].path} does not declare whether its wavelengths are in vacuum or air: air is taken, as"
        " in the spectra of the adapter"
    ]
    for options in (Options(wavelength_medium="air"), Options(survey="lamost")):
        report_medium(sources, options, said.append)
    report_medium(sources[:1], Options(), said.append)
    assert not caplog.messages
    report_medium(sources, Options(), said.append)
    assert [read(source.path).medium for source in sources[1:]] == ["vacuum"] * 3
    assert len(said) == len(caplog.messages) == 1
    assert "84 km/s" in caplog.messages[0]


def test_bad_records_do_not_stop_a_file(tmp_path, caplog):
    record = {"sparcl_id": "good", "wavelength": GRID.tolist(), "flux": FLUX.tolist()}
    text = record | {"sparcl_id": "text", "flux": "bright"}
    short = record | {"sparcl_id": "short", "flux": [1.0, 2.0]}
    (tmp_path / "s.json").write_text(json.dumps([text, record, short]))
    assert read(tmp_path / "s.json").id.tolist() == ["good"]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("name", ["s.npz", "s.fits", "s.csv", "s.json"])
def test_a_file_without_permission_is_refused_in_one_line(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b"")
    opened = Path.open

    def refuse(self, *args, **options):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=name):
        read(path)


def test_a_masked_array_keeps_its_mask():
    hidden = np.ma.array(put(FLUX, SOME, 1e3), mask=put(np.zeros(N, bool), SOME, True))
    spectra = Spectra.build(GRID, hidden)
    assert np.flatnonzero(spectra.mask[0]).tolist() == list(range(N))[SOME]
    assert (spectra.flux[0, SOME] == 0).all()


def test_flagged_spectra_have_no_prediction(tmp_path):
    """Predictions of one batch: NaN for flagged spectra, hardly changed by masked pixels for the others."""
    names = ["csv", "masked pixels of 1e4", "cosmic ray of 1e4"]
    names += ["all pixels nan", "negative flux", "constant flux", "a galaxy"]
    cases = {case.name: case for case in CASES}
    parts = []
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        parts.append(to_lamost(read(cases[name].make(folder))))
    spectra = Spectra.concatenate(parts)
    model = specjax.load("mini")
    untrained = lora.init_adapters(jax.random.key(0), model.params, {"lora4": model.config.loras["lora4"]})
    config = {"configuration": "lora4", "label": "fe_h", "seeds": 1, "sigma": 0.1}
    with quick_compilation():
        columns = predict(model, spectra, jax.tree.map(lambda leaf: leaf[None], untrained), config)
    # A star with lines at random wavelengths is unlike the training set, which is flagged as well.
    flags = columns["flag"].tolist()
    found = np.array(["good" if flag.endswith(("_training",)) else flag for flag in flags])
    assert found.tolist() == [cases[name].flag for name in names]
    assert np.isfinite(columns["fe_h"]).tolist() == [True, True, True, False, False, False, False]
    # Tokens of masked pixels are left out; 0.1 dex is the model's scatter between stars.
    np.testing.assert_allclose(columns["fe_h"][1:3], columns["fe_h"][0], atol=0.1)
