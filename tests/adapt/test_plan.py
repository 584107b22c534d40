import dataclasses
import json

import numpy as np
import pytest

from specjax.adapt import plan
from specjax.adapt.plan import PlanConfig, plan_survey
from specjax.errors import ConfigError
from specjax.foundation import Foundation
from specjax.preprocess import to_lamost
from specjax.report.results import read_table
from specjax.simulate.instrument import PRESETS
from specjax.simulate.population import Ranges
from specjax.simulate.survey import simulate_spectra
from tests.adapt.test_survey import SMALL
from tests.models.tiny import random_system

CONFIG = PlanConfig(stars=(20, 12), snr=(20.0, 200.0), validate=2, test=15, seeds=2)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model of random parameters, whose heads are in the units of the labels."""
    values = np.array([[5000.0, -2.0], [6000.0, 0.5]])
    scale = {"label_mean": values.mean(0).astype(np.float32), "label_std": values.std(0).astype(np.float32)}
    made = Foundation(config=SMALL, variables=random_system(SMALL))
    grid = to_lamost(simulate_spectra(PRESETS["desi"], 16))
    features = {head: made.features(grid, head) for head in ("mlp1", "mlp2")}
    stats = {
        head: {"feature_mean": x.mean(0), "feature_std": x.std(0) + 1e-3, **scale}
        for head, x in features.items()
    }
    path = tmp_path_factory.mktemp("plan") / "model"
    dataclasses.replace(made, stats=stats).save(path)
    return path


def test_a_plan_has_a_row_for_every_number_of_stars_and_snr(model, tmp_path):
    out = tmp_path / "plan"
    said = []
    rows = plan_survey(model=model, instrument=PRESETS["desi"], out=out, config=CONFIG, say=said.append)
    assert {path.name for path in out.iterdir()} == {"config.json", "table.json", "plan.png"}
    everything = [row for row in rows if row["subset"] == "all"]
    assert [(row["snr"], row["n_train"], row["configuration"]) for row in everything] == [
        (snr, *point)
        for snr in (20.0, 200.0)
        for point in ((0, "zero-shot-mlp2"), (12, "lora4, 12 stars"), (20, "lora4, 20 stars"))
    ]
    assert {row["n_stars"] for row in everything} == {15}
    assert all(np.isfinite(row["sigma"]) for row in everything)
    assert len(read_table(out)) == len(rows)
    assert "simulating 37 stars at S/N 20" in said


def test_everything_says_that_it_is_simulated(model, tmp_path):
    config = dataclasses.replace(CONFIG, stars=(12,), snr=(50.0,))
    population = Ranges({"teff": (5000, 6000)})
    out = tmp_path / "plan"
    rows = plan_survey(model=model, instrument=PRESETS["desi"], out=out, config=config, population=population)
    assert all(row["simulated"] and row["target"] == "simulated-desi, S/N 50" for row in rows)
    content = json.loads((out / "config.json").read_text())
    assert content["simulated"].startswith("by specjax")
    assert content["population"] == "uniform in teff 5000 to 6000"
    assert json.loads(content["instrument"])["name"] == "desi"


def test_errors_of_labels_reach_the_training_only():
    config = dataclasses.replace(CONFIG, label_error=0.1)
    target = plan._target(PRESETS["desi"].with_snr(50, 50), Ranges({"fe_h": (-1, 0)}), config, print)
    errors = plan._with_errors(target, config).truth - target.truth
    assert errors.std() == pytest.approx(0.1, rel=0.4)  # 37 numbers
    assert plan._with_errors(target, CONFIG).truth.tolist() == target.truth.tolist()
    np.testing.assert_array_equal(target.truth, target.fe_h)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stars": (5,)}, "at least 10"),
        ({"stars": ()}, "at least 10"),
        ({"snr": (0.0,)}, "must be positive"),
        ({"test": 0}, "must be positive"),
        ({"label_error": -1.0}, "must be positive"),
        ({"label": "age"}, "no label 'age'"),
    ],
)
def test_impossible_plans_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configuration": "zero-shot-mlp2"}, "no use for training stars"),
        ({"label": "logg"}, "predicts teff, fe_h, not 'logg'"),
    ],
)
def test_a_plan_that_fails_leaves_no_folder(model, tmp_path, change, message):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ConfigError, match=message):
        plan_survey(model=model, instrument=PRESETS["desi"], out=tmp_path / "plan", config=config)
    assert list(tmp_path.iterdir()) == []
