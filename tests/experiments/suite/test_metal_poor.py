import dataclasses

import numpy as np
import pytest

from experiments.suite import metal_poor
from experiments.suite.metal_poor import mixed_case, random_flaws, stratified_case, validated_weight
from specjax.errors import ConfigError
from tests import synthetic
from tests.experiments.suite import small

pytestmark = pytest.mark.usefixtures("quick_compilation")

VALIDATE = np.array([[0, 1, 2], [3, 4, 5]])


def test_the_weight_is_that_of_the_better_predictions():
    truth = np.linspace(-2, 0, 12)
    wrong = np.tile(truth + 1.0, (2, 1))
    right = np.tile(truth, (2, 1))
    np.testing.assert_array_equal(validated_weight(truth, wrong, right, VALIDATE), 1)
    np.testing.assert_array_equal(validated_weight(truth, right, wrong, VALIDATE), 0)
    opposite = np.tile(truth - 1.0, (2, 1))
    np.testing.assert_array_equal(validated_weight(truth, wrong, opposite, VALIDATE), 0.5)
    np.testing.assert_array_equal(validated_weight(truth, wrong, right, VALIDATE[:, :0]), 0.5)


def test_the_weight_is_chosen_on_validation_stars_alone():
    truth, rng = np.linspace(-2, 0, 12), np.random.default_rng(0)
    first, second = rng.normal(size=(2, 2, 12))
    chosen = validated_weight(truth, first, second, VALIDATE)
    others = np.ones(truth.shape, bool)
    others[VALIDATE[0]] = False
    truth[others], first[0, others] = np.nan, np.nan
    assert validated_weight(truth, first, second, VALIDATE)[0] == chosen[0]


def test_stratified_parts_have_the_same_metallicities():
    case = small.case()
    found = stratified_case(case)
    assert found.splits.train.shape == case.splits.train.shape
    fe_h = case.target.fe_h
    spread = [np.std([np.median(fe_h[rows]) for rows in one.splits.train]) for one in (found, case)]
    assert spread[0] <= spread[1] + 0.2
    median = np.median(fe_h)
    for rows in found.splits.train:
        assert abs((fe_h[rows] < median).mean() - 0.5) <= 0.15  # two of 20 stars and the rounding of strata


def test_added_stars_are_trained_on_and_never_tested():
    case = small.case()
    more, _ = synthetic.observed(synthetic.labels(7, seed=9), "S", 10)
    mixed = mixed_case(case, more, np.full(7, -2.0))
    assert len(mixed.target.labelled) == 47
    np.testing.assert_array_equal(mixed.target.labelled.flux[:40], case.target.labelled.flux)
    np.testing.assert_array_equal(mixed.target.labelled.mask[:40], case.target.labelled.mask)
    for seed in range(2):
        assert set(range(40, 47)) <= set(mixed.splits.train[seed].tolist())
    np.testing.assert_array_equal(mixed.splits.test, case.splits.test)
    np.testing.assert_array_equal(mixed.splits.validate, case.splits.validate)
    np.testing.assert_array_equal(mixed.target.truth[40:], -2.0)


def test_flaws_are_drawn_in_their_ranges():
    drawn = [random_flaws(np.random.default_rng(seed), 24.0, seed) for seed in range(50)]
    assert {flaws.fwhm for flaws in drawn} == {24.0}
    assert all(20 <= flaws.snr <= 100 and abs(flaws.wavelength_offset) <= 1 for flaws in drawn)
    assert len({flaws.scattered_light for flaws in drawn}) == 50


@pytest.mark.slow
def test_the_experiment(monkeypatch, tmp_path):
    small.install(monkeypatch)

    def baselines(one, splits=None):
        made = small.baselines(one, splits)
        return {"mlp-lora": made["good"], "bad": made["bad"]}

    def simulated_stars(fwhm, count, seed, *, poor):
        values = synthetic.labels(count, seed)
        return synthetic.observed(values, "S", seed, bias=0.0)[0], values[:, 1]

    monkeypatch.setattr(metal_poor.cases, "baselines", baselines)
    monkeypatch.setattr(metal_poor, "simulated_stars", simulated_stars)
    config = dataclasses.replace(
        metal_poor.get_config(), seeds=small.SEEDS, simulated=(8,), surveys=3, stars=20
    )
    results = metal_poor.run(config, tmp_path, small.silent)
    results.write(tmp_path)
    names = [row["name"] for row in results.rows]
    assert names == [
        "zero-shot-mlp1", "lora2", "mean of lora2 and plain network", "lora2 and plain network, validated",
        "zero-shot-mlp1, offset with prior", "zero-shot-mlp1, correction",
        "zero-shot-mlp1, correction with its own scatter", "lora2, 8 simulated stars",
        "lora2, stratified splits", "mlp-lora", "bad",
    ]  # fmt: skip
    poor = (small.case().target.fe_h < -1).sum()
    assert all(row["n_distinct"] <= poor for row in results.rows)
    assert set(results.answers) == {"failure", "mending"}


def test_another_label_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="about fe_h, not teff"):
        metal_poor.run(dataclasses.replace(metal_poor.get_config(), label="teff"), tmp_path, small.silent)
