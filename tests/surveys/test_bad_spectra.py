"""What is wrong with spectra, from the file to the model's input: an error, a flag, or the right numbers.

Every case is written as a file, read and taken to the LAMOST grid. Either it is refused with one line, or its
row is flagged, or what is not masked equals the same star without the trouble: there is no fourth way.
"""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

import specjax
from specjax import lora
from specjax.adapt import survey
from specjax.errors import DataError, SpecjaxError
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.surveys import read
from tests.surveys.bad_spectra import CASES, FLUX, GRID, IVAR, SOME, N, put
from tests.synthetic import quick_compilation

CLEAN = to_lamost(Spectra.build(GRID, FLUX, IVAR))


def test_there_are_sixty_kinds_and_no_name_twice():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_flagged_or_right(case, tmp_path):
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
    if case.flag in ("", "masked_fraction"):
        assert not grid.mask.all()
        # Not beside a pixel that is masked here: it is the mean of what is left of it.
        whole = ~(grid.mask | np.roll(grid.mask, 1, axis=1) | np.roll(grid.mask, -1, axis=1) | CLEAN.mask)
        np.testing.assert_allclose(grid.flux[whole], CLEAN.flux[whole], atol=case.atol)


def test_one_bad_file_never_stops_a_folder(tmp_path, caplog):
    """Every LAMOST case in one folder: the refused ones are named, the others have their rows."""
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
def test_a_medium_that_nobody_says_is_said_once(name, tmp_path, caplog):
    """Air taken for vacuum cannot be seen in the numbers: 84 km/s might be the star's velocity."""
    case = next(case for case in CASES if case.name == {"spectrum.npz": "bytes as ids", "s.csv": "csv"}[name])
    path = case.make(tmp_path)
    assert [read(path).medium, read(path).medium] == ["vacuum", "vacuum"]
    assert [f"{path} does not say if its wavelengths are in vacuum or air" in m for m in caplog.messages] == [
        True
    ]
    caplog.clear()
    assert read(case.make(tmp_path), wavelength_medium="air").medium == "air"
    assert not caplog.messages


def test_one_bad_record_never_stops_a_file(tmp_path, caplog):
    record = {"sparcl_id": "good", "wavelength": GRID.tolist(), "flux": FLUX.tolist()}
    text = record | {"sparcl_id": "text", "flux": "bright"}
    short = record | {"sparcl_id": "short", "flux": [1.0, 2.0]}
    (tmp_path / "s.json").write_text(json.dumps([text, record, short]))
    assert read(tmp_path / "s.json").id.tolist() == ["good"]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("name", ["s.npz", "s.fits", "s.csv", "s.json"])
def test_a_file_that_may_not_be_read_is_one_line(name, tmp_path, monkeypatch):
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


def test_the_model_gives_flagged_rows_no_number(tmp_path):
    """One batch through the mini model: what is flagged is NaN, what is masked hardly changes the label."""
    names = ["csv", "masked pixels of 1e4", "cosmic ray of 1e4"]
    names += ["all nan", "negative flux", "constant flux", "a galaxy"]
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
        columns = survey.predict(model, spectra, jax.tree.map(lambda leaf: leaf[None], untrained), config)
    # A star with lines at random is unlike those that the model was trained on, which is said too.
    said = columns["flag"].tolist()
    found = np.array(["" if flag.endswith(("_training",)) else flag for flag in said])
    assert found.tolist() == [cases[name].flag for name in names]
    assert np.isfinite(columns["fe_h"]).tolist() == [True, True, True, False, False, False, False]
    # Tokens of the masked pixels are left out: a tenth of a dex is the scatter between stars of the model.
    np.testing.assert_allclose(columns["fe_h"][1:3], columns["fe_h"][0], atol=0.1)
