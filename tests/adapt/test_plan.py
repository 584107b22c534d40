import dataclasses
import json

import numpy as np
import pytest

from specjax.adapt import plan
from specjax.adapt.plan import PlanConfig, plan_survey
from specjax.adapt.run_folder import score
from specjax.errors import ConfigError
from specjax.flags import Flag
from specjax.foundation import Foundation
from specjax.preprocess import to_lamost
from specjax.preprocess.velocity import measure_velocity
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
    assert {path.name for path in out.iterdir()} == {"config.json", "table.json", "plan.png", "plan.pdf"}
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


def test_reported_velocities_are_removed():
    population = Ranges({"teff": (5000, 5500), "velocity": (150, 200)})
    exact = dataclasses.replace(PRESETS["desi"], velocity_error=0.0).with_snr(300, 300)
    target = plan._target(exact, population, CONFIG, print)
    velocity, _ = measure_velocity(target.labelled.flux, target.labelled.mask)
    assert target.preparation["velocity_column"] == "redshift"
    assert np.abs(np.median(velocity)) < 30
    at_rest = dataclasses.replace(exact, rest_frame=True)
    assert plan._target(at_rest, population, CONFIG, print).preparation["velocity_column"] is None


def test_the_splits_contain_the_same_stars_at_every_snr(model, tmp_path, monkeypatch):
    """Even where a star is flagged at one S/N only."""
    tested = []

    def flag_one(spectra, **options):
        grid = to_lamost(spectra, **options)
        noisy = spectra.meta["snr"][0] < 100
        flag = np.where(noisy & (np.arange(len(grid)) == 3), Flag.CONTINUUM_FAILED, grid.meta["flag"])
        return grid.with_meta(flag=flag)

    def record(target, part, adapted):
        tested.append([target.labelled.id[rows].tolist() for rows in part.test])
        return score(target, part, adapted)

    monkeypatch.setattr(plan, "to_lamost", flag_one)
    monkeypatch.setattr(plan, "score", record)
    config = dataclasses.replace(CONFIG, stars=(12,), test=20, seeds=1)
    plan_survey(model=model, instrument=PRESETS["desi"], out=tmp_path / "plan", config=config)
    assert len(tested) == 2
    assert tested[0] == tested[1]
    assert "sim-0-0000003" not in tested[1][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stars": (5,)}, "at least 10"),
        ({"stars": ()}, "at least 10"),
        ({"snr": (0.0,)}, "must be positive"),
        ({"snr": (float("nan"),)}, "must be positive"),
        ({"seeds": 0}, "must be positive"),
        ({"test": 9}, "at least 10 test stars"),
        ({"label_error": -1.0}, "finite and not negative"),
        ({"label_error": float("nan")}, "finite and not negative"),
        ({"label_error": float("inf")}, "finite and not negative"),
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
def test_a_plan_that_is_refused_simulates_nothing_and_leaves_no_folder(model, tmp_path, change, message):
    config = dataclasses.replace(CONFIG, **change)
    said = []
    with pytest.raises(ConfigError, match=message):
        plan_survey(
            model=model, instrument=PRESETS["desi"], out=tmp_path / "plan", config=config, say=said.append
        )
    assert said == []
    assert list(tmp_path.iterdir()) == []
