import dataclasses

import numpy as np
import pytest

from experiments import spectrum_mlp
from experiments.source import Source
from specjax.adapt.splits import draw_splits
from specjax.preprocess import PrincipalFill
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import PretrainConfig, StageConfig
from tests import synthetic


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    stage = StageConfig(steps=400, batch=32, learning_rate=3e-3, chunk=400)
    monkeypatch.setattr(spectrum_mlp, "STAGE", stage)
    with synthetic.quick_compilation():
        yield


@pytest.fixture
def pairs():
    """Stars with a random second label, in place of log g, on which the spectra do not depend."""
    pairs = synthetic.corpus(80)
    teff, fe_h = pairs.labels.T
    logg = np.random.default_rng(0).uniform(1, 5, 80)
    return dataclasses.replace(pairs, labels=np.stack([teff, logg, fe_h], axis=1))


@pytest.fixture
def source(pairs):
    return make_source(pairs)


def make_source(pairs):
    fill = PrincipalFill.fit(pairs.flux, np.zeros(pairs.flux.shape, bool), 5)
    material = make_data(pairs, PretrainConfig())
    return Source(pairs.flux, pairs.labels, material, fill, lambda fwhm: pairs.flux)


def test_predicts_metallicity_and_trains_once_per_corpus(pairs, source, tmp_path):
    values = synthetic.labels(30, seed=9)
    flux, _ = synthetic.spectra(values, seed=10)
    said = []

    def predict(source, flux):
        return spectrum_mlp.zero_shot(spectrum_mlp.trained(source, tmp_path, said.append), flux)

    first = predict(source, flux)
    assert first.shape == (30,)
    assert np.std(first - values[:, 1]) < 0.6 * np.std(values[:, 1])  # it learns from 41 smoothed pixels
    trained = len(said)
    assert trained == 1
    again = predict(source, flux[:3])
    assert len(said) == trained
    # 3 rows instead of 30: float32 sums in another order
    np.testing.assert_allclose(again, first[:3], rtol=1e-4, atol=1e-5)
    # Other labels need another training.
    moved = make_source(dataclasses.replace(pairs, labels=pairs.labels + np.array([0, 0, 1.0])))
    other = predict(moved, flux)
    assert len(said) == 2 * trained
    assert np.median(other - first) == pytest.approx(1, abs=0.3)


@pytest.mark.slow
class TestAdapted:
    """Low-rank factors on the labels of a survey whose spectra are tilted against those of the source."""

    SPLITS = draw_splits(40, seeds=2, train=20, validate=4)

    @pytest.fixture
    def target(self):
        values = synthetic.labels(40, seed=9)
        flux, _ = synthetic.spectra(values, seed=10, bias=0.05)
        return flux, values[:, 1]

    @pytest.fixture
    def network(self, source, tmp_path):
        return spectrum_mlp.trained(source, tmp_path)

    def test_is_better_than_the_network_as_it_is(self, network, target):
        flux, truth = target
        found = spectrum_mlp.adapted(network, flux, truth, self.SPLITS, synthetic.ADAPT)
        assert found.shape == (2, 40)
        before = spectrum_mlp.zero_shot(network, flux)
        for seed, test in enumerate(self.SPLITS.test):
            error = np.mean((found[seed, test] - truth[test]) ** 2)
            assert error < 0.8 * np.mean((before[test] - truth[test]) ** 2)

    def test_does_not_see_test_labels(self, network, target):
        flux, truth = target
        found = spectrum_mlp.adapted(network, flux, truth, self.SPLITS[:1], synthetic.ADAPT)
        hidden = truth.copy()
        hidden[self.SPLITS.test[0]] = np.nan
        blind = spectrum_mlp.adapted(network, flux, hidden, self.SPLITS[:1], synthetic.ADAPT)
        np.testing.assert_array_equal(blind, found)

    def test_stays_as_it_is_if_nothing_is_better(self, network, target):
        flux, _ = target
        before = spectrum_mlp.zero_shot(network, flux)
        found = spectrum_mlp.adapted(network, flux, before, self.SPLITS, synthetic.ADAPT)
        np.testing.assert_allclose(found, np.tile(before, (2, 1)), rtol=1e-6)
