import dataclasses

import numpy as np
import pytest

from experiments import spectrum_mlp
from specjax.pretrain.config import StageConfig
from tests import synthetic


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    stage = StageConfig(steps=400, batch=32, learning_rate=3e-3, chunk=400)
    monkeypatch.setattr(spectrum_mlp, "STAGE", stage)
    with synthetic.quick_compilation():
        yield


@pytest.fixture
def source():
    """Stars with a random second label, in place of log g, on which the spectra do not depend."""
    pairs = synthetic.corpus(80)
    teff, fe_h = pairs.labels.T
    logg = np.random.default_rng(0).uniform(1, 5, 80)
    return dataclasses.replace(pairs, labels=np.stack([teff, logg, fe_h], axis=1))


def test_predicts_metallicity_and_trains_once_per_corpus(source, tmp_path):
    values = synthetic.labels(30, seed=9)
    flux, _ = synthetic.spectra(values, seed=10)
    said = []
    first = spectrum_mlp.zero_shot(source, flux, tmp_path, said.append)
    assert first.shape == (30,)
    assert np.std(first - values[:, 1]) < 0.6 * np.std(values[:, 1])  # it learns from 41 smoothed pixels
    trained = len(said)
    assert trained == 1
    again = spectrum_mlp.zero_shot(source, flux[:3], tmp_path, said.append)
    assert len(said) == trained
    # 3 rows instead of 30: float32 sums in another order
    np.testing.assert_allclose(again, first[:3], rtol=1e-4, atol=1e-5)
    # Other labels need another training.
    moved = dataclasses.replace(source, labels=source.labels + np.array([0, 0, 1.0]))
    other = spectrum_mlp.zero_shot(moved, flux, tmp_path, said.append)
    assert len(said) == 2 * trained
    assert np.median(other - first) == pytest.approx(1, abs=0.3)
