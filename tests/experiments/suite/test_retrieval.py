import dataclasses

import numpy as np
import pytest

from experiments.suite import retrieval
from experiments.suite.pair_targets import SpectrumPairs, _divided, load_pairs
from experiments.suite.retrieval import MEAN, RIDGE, ZERO_SHOT
from specjax.errors import ConfigError
from tests import synthetic
from tests.experiments.suite import small

pytestmark = pytest.mark.usefixtures("quick_compilation")


def pairs():
    """Tilted LAMOST-like spectra with XP-like partners."""
    lamost, xp = synthetic.observed(synthetic.labels(70, seed=5), "P", 6)
    rows = np.arange(70)
    return SpectrumPairs(
        name="tilted", lamost=lamost, xp=xp, train=rows[:30], validate=rows[30:45], test=rows[45:]
    )


def config():
    return dataclasses.replace(retrieval.get_config(), aligned=("lora3",), steps=21, batch=16, rate=3e-2)


@pytest.mark.slow
def test_alignment_is_no_worse_on_the_pairs_that_select_it():
    model, made = synthetic.foundation(), pairs()
    models = retrieval.align(model, made, "lora3", config().stage, 2, small.silent)
    assert len(models) == 2
    validate = made.validate
    costs = [
        np.log(retrieval.partner_ranks(one.embed(made.lamost[validate]), one.embed(made.xp[validate]))).mean()
        for one in (model, *models)
    ]
    assert max(costs[1:]) < costs[0]  # of random weights, which know nothing of pairs


def test_the_experiment(monkeypatch, tmp_path):
    monkeypatch.setattr(retrieval, "load_pairs", lambda config: [pairs()])
    monkeypatch.setattr(retrieval, "load", lambda name: synthetic.foundation())
    results = retrieval.run(config(), tmp_path, small.silent)
    results.write(tmp_path)
    by = {row["name"]: row for row in results.rows}
    assert list(by) == [ZERO_SHOT, RIDGE, MEAN, "lora3"]
    for row in results.rows:
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["baseline"] == RIDGE
    # Both surveys are linear in a few numbers, which the mean spectrum does not know.
    assert by[RIDGE]["error"] < by[MEAN]["error"]
    assert by[RIDGE]["top5"] > by[MEAN]["top5"]
    assert by[MEAN]["top5"] == 0
    assert by["lora3"]["error_back"] == by[ZERO_SHOT]["error_back"]  # the XP tower is not adapted
    assert len(results.sentences) == 2


def test_rows_are_divided_once():
    train, validate, test = _divided(50, 0.2)
    assert [len(part) for part in (train, validate, test)] == [30, 10, 10]
    assert sorted(np.concatenate([train, validate, test]).tolist()) == list(range(50))
    np.testing.assert_array_equal(_divided(50, 0.2)[0], train)


def test_pairs_that_do_not_exist_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.suite.pair_targets.fetch_stellar_libraries", lambda: tmp_path)
    wrong = dataclasses.replace(retrieval.get_config(), targets=("stelib",))
    with pytest.raises(ConfigError, match="no pairs 'stelib': they are miles, miles-grism and stelib-miles"):
        list(load_pairs(wrong))
    paper = dataclasses.replace(retrieval.get_config(), preset="paper")
    with pytest.raises(ConfigError, match="--model DIR"):
        list(load_pairs(paper))
