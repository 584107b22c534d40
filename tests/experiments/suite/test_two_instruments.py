import dataclasses

import numpy as np
import pytest

from experiments.suite import two_instruments
from experiments.suite.pair_targets import first_matches
from experiments.suite.two_instruments import LABELS, Shared, paired_splits, score
from specjax.errors import ConfigError, DataError
from specjax.report.metrics import robust_sigma
from tests import synthetic
from tests.experiments.suite import small

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHARED = np.stack([np.arange(20), np.arange(39, 19, -1)], axis=1)


def splits(**changes):
    given = {"seeds": 5, "sizes": ((20, 4), (12, 3)), "tested": 0.5}
    return paired_splits((60, 40), SHARED, **{**given, **changes})


def test_the_test_stars_are_the_same_in_both_and_train_neither():
    one, other = splits()
    for first, second in zip(one.test, other.test, strict=True):
        pairs = {(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
        assert pairs <= {tuple(pair) for pair in SHARED.tolist()}
        assert len(pairs) == 10
    for part in (one, other):
        for seed in range(5):
            rows = np.concatenate([part.train[seed], part.validate[seed], part.test[seed]])
            assert len(set(rows.tolist())) == len(rows)


def test_seeds_differ_and_do_not_depend_on_their_number():
    few, many = splits(seeds=2)[0], splits(seeds=5)[0]
    np.testing.assert_array_equal(few.train, many.train[:2])
    assert (many.test[0] != many.test[1]).any()


def test_too_few_stars():
    with pytest.raises(DataError, match="30 stars beside the tested ones are too few"):
        splits(sizes=((20, 4), (30, 3)))


def test_names_match_once():
    left, right = first_matches(["HD 1", "HD2", "hd001", "BD3"], ["HD0001", "HD 2", "HD 2"])
    assert (left.tolist(), right.tolist()) == ([0, 1], [0, 1])


def test_the_score_of_one_seed_is_that_of_its_differences():
    rng = np.random.default_rng(0)
    difference, stars = rng.normal(0.3, 0.1, (1, 200)), np.arange(200)[None].astype(str)
    found = score(difference, stars, 2 * difference)
    assert found["sigma"] == pytest.approx(robust_sigma(difference[0]))
    assert found["sigma_gain"] == pytest.approx(found["sigma"])  # the reference scatters twice as much
    assert found["sigma_lo"] < 0.1 < found["sigma_hi"]
    assert found["bias_lo"] < 0.3 < found["bias_hi"]
    assert found["n_distinct"] == 200


def test_the_experiment(monkeypatch, tmp_path):
    """Two observations of the same stars with different noise."""
    small.install(monkeypatch)
    values = synthetic.labels(40, seed=5)
    targets = [
        synthetic.target(name=name, labelled=synthetic.observed(values, "L", seed, bias)[0])
        for name, seed, bias in (("one", 6, 0.3), ("other", 16, 0.1))
    ]
    rows = np.stack([np.arange(20)] * 2, axis=1)
    monkeypatch.setattr(
        two_instruments, "load_shared", lambda label: Shared(targets=tuple(targets), rows=rows)
    )
    monkeypatch.setattr(two_instruments, "load", lambda name: synthetic.foundation())
    config = dataclasses.replace(
        two_instruments.get_config(), seeds=2, train=20, validate=4, configurations=("lora2",)
    )
    results = two_instruments.run(config, tmp_path, small.silent)
    results.write(tmp_path)
    by = {row["name"]: row for row in results.rows}
    assert list(by) == [LABELS, "zero-shot-mlp1", "lora2", "good", "bad"]
    assert by[LABELS]["sigma"] == 0  # the same labels
    assert by["lora2"]["baseline"] == "good"
    assert by["lora2"]["miles_sigma"] > 0
    assert len(results.sentences) == 2


def test_a_users_survey_is_refused(tmp_path):
    config = dataclasses.replace(two_instruments.get_config(), target=tmp_path)
    with pytest.raises(ConfigError, match="compares MILES and STELIB"):
        two_instruments.run(config, tmp_path, small.silent)
