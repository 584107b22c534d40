"""Where experiments get models, targets and splits from; small files in place of a user's survey."""

import doctest

import numpy as np
import pytest
from astropy.table import Table

from experiments.suite import cases, frame, wording
from experiments.suite.frame import Config
from specjax.errors import ConfigError, DataError
from specjax.wavelength import LAMOST_WAVELENGTH

STARS = 30


@pytest.fixture
def folder(tmp_path):
    """Spectra with a few lines and labels of all but two stars, in another order."""
    rng = np.random.default_rng(0)
    wavelength = np.arange(3700.0, 5750.0, 1.5)
    flux = 1 + 0.01 * rng.normal(size=(STARS, len(wavelength)))
    lines = np.exp(-0.5 * ((wavelength - np.array([4300.0, 4861, 5170])[:, None]) / 5) ** 2)
    flux -= rng.uniform(0.2, 0.5, (STARS, 3)) @ lines
    ids = np.array([f"s{k}" for k in range(STARS)])
    np.savez(tmp_path / "spectra.npz", wavelength=wavelength, flux=flux, id=ids, wavelength_medium="vacuum")
    order = rng.permutation(STARS - 2)
    Table({"id": ids[order], "fe_h": order / 10.0, "teff": 5000.0 + order}).write(tmp_path / "labels.csv")
    return tmp_path


def test_a_survey_of_ones_own(folder):
    target = cases.own_target(Config(target=folder, fwhm=3.0, label="teff"))
    assert len(target.labelled) + len(target.refused) >= STARS - 2
    row = {name: k for k, name in enumerate(target.labelled.id.tolist())}["s3"]
    assert (target.truth[row], target.fe_h[row], target.label) == (5003.0, 0.3, "teff")
    np.testing.assert_array_equal(target.labelled.wavelength, LAMOST_WAVELENGTH)
    assert target.unlabelled_xp is None


@pytest.mark.parametrize(("missing", "name"), [("labels.csv", "labels"), ("spectra.npz", "spectra")])
def test_a_folder_must_hold_both(folder, missing, name):
    (folder / missing).unlink()
    with pytest.raises(DataError, match=rf"must hold one {name} or {name}\.\*, not 0"):
        cases.own_target(Config(target=folder))


def test_the_preset_paper_needs_weights():
    with pytest.raises(ConfigError, match="needs the folder of converted weights: --model DIR"):
        next(cases.load_cases(Config(preset="paper")))


def test_a_model_that_knows_the_labels_is_refused(monkeypatch, on_synthetic):
    with pytest.raises(ConfigError, match="mini was trained on MILES"):
        next(cases.load_cases(Config(model="mini", targets=("miles",), train=20, validate=4)))


def test_the_shipped_model_is_the_one_without_the_labels(monkeypatch, on_synthetic):
    loaded = []
    real = cases._loaded
    monkeypatch.setattr(cases, "_loaded", lambda name: loaded.append(name) or real(name))
    config = Config(targets=("miles-grism", "stelib"), train=20, validate=4, seeds=2)
    found = list(cases.load_cases(config))
    assert loaded == ["mini-physics", "mini"]
    assert [(case.name, len(case.splits)) for case in found] == [("miles-grism", 2), ("stelib", 2)]
    row = found[0].score("truth", found[0].target.truth, kind="baseline")
    assert (row["sigma"], row["r2"], row["n_seeds"], row["n_stars"]) == (0, 1, 2, 16)


@pytest.mark.parametrize("module", [frame, wording])
def test_examples_give_what_they_show(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
