import dataclasses

import numpy as np
import pytest

from experiments.suite import label_noise
from experiments.suite.label_noise import LEFT_OUT, TOLD, UNTOLD, perturbed, versions, weights
from tests import synthetic
from tests.experiments.suite import small

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRUTH = np.random.default_rng(0).normal(size=4000)


def test_half_of_the_labels_have_errors_of_the_stated_size():
    labels, errors = perturbed(TRUTH, 0.2, 0.5)
    changed = labels != TRUTH
    assert changed.sum() == 2000
    np.testing.assert_array_equal(changed, errors > 0)
    assert (labels - TRUTH)[changed].std() == pytest.approx(0.2, rel=0.07)  # 2000 draws: four times 1.6%


def test_larger_errors_are_of_the_same_stars_and_proportional():
    small_ones, large = (perturbed(TRUTH, error, 0.5)[0] - TRUTH for error in (0.1, 0.3))
    np.testing.assert_allclose(large, 3 * small_ones, atol=1e-12)
    np.testing.assert_array_equal(perturbed(TRUTH, 0.0, 0.5)[0], TRUTH)


def test_weights_are_those_of_the_total_variance():
    np.testing.assert_allclose(weights(np.array([0.0, 0.1, 0.3]), 0.1), [1.0, 0.5, 0.1])


def test_all_versions_have_the_same_labels():
    config = dataclasses.replace(label_noise.get_config(), scatter=0.1)
    made = versions(synthetic.target(), 0.1, config)
    assert list(made) == [UNTOLD, TOLD, LEFT_OUT]
    for target in made.values():
        np.testing.assert_array_equal(target.truth, made[UNTOLD].truth)
    assert made[UNTOLD].weight is None
    assert sorted(set(made[TOLD].weight)) == [0.5, 1.0]
    assert made[LEFT_OUT].weight.min() < 1e-3
    assert list(versions(synthetic.target(), 0.0, config)) == [UNTOLD]


def test_the_experiment(monkeypatch, tmp_path):
    small.install(monkeypatch)
    config = dataclasses.replace(label_noise.get_config(), seeds=small.SEEDS, errors=(0.0, 1.0))
    results = label_noise.run(config, tmp_path, small.silent)
    results.write(tmp_path)
    names = [(row["error"], row["name"]) for row in results.rows]
    assert names[:2] == [(0.0, "zero-shot-mlp1"), (0.0, "lora2, untold")]
    assert {name for error, name in names if error} == {
        "zero-shot-mlp1", "lora2, untold", "lora2, told", "lora2, left out", "good", "bad",
    }  # fmt: skip
    assert {row["baseline"] for row in results.rows} == {"good"}
    # What is scored does not depend on the errors of the training labels.
    zero = [row["sigma"] for row in results.rows if row["kind"] == "zero-shot"]
    assert zero[0] == zero[1]
    assert len(results.sentences) == 2
    assert "if these stars are left out" in results.sentences[1]
