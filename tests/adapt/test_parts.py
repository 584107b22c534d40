"""Finished seeds of a study on disk: a study that was stopped resumes, and gives the same tables."""

import dataclasses

import numpy as np
import pytest

from specjax.adapt import shares
from specjax.adapt.adaptation import Adaptation, AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.parts import Parts, from_seeds, joined_seeds, record_of, to_seeds
from specjax.adapt.splits import draw_splits
from specjax.adapt.study import run_study
from specjax.errors import ConfigError
from tests import synthetic

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = synthetic.ADAPT
SPLITS = draw_splits(40, seeds=3, train=20, validate=4)
FILES = ("table.json", "predictions.ecsv", "adapters/tilted/lora4/weights.safetensors")


def study(model, out, say=lambda text: None, config=CONFIG, target=None):
    named = [Configuration.parse(name) for name in ("lora4", "residual-mlp2")]
    target = synthetic.target() if target is None else target
    run_study(model, [target], config, out, configurations=named, say=say)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    study(model, out)
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    return [(out / name).read_bytes() for name in FILES]


def stop_at(name):
    def say(text):
        if text == f"tilted: {name}":
            raise KeyboardInterrupt

    return say


@pytest.fixture
def stopped(model, tmp_path):
    """A study that was stopped before its second configuration."""
    with pytest.raises(KeyboardInterrupt):
        study(model, tmp_path / "run", stop_at("residual-mlp2"))
    assert not (tmp_path / "run").exists()
    return tmp_path / "run"


def test_a_study_that_was_stopped_resumes(model, stopped, whole, monkeypatch):
    trained, said = [], []
    run = Adaptation.run

    def counted(self, configuration):
        trained.append(configuration.name)
        return run(self, configuration)

    monkeypatch.setattr(Adaptation, "run", counted)
    study(model, stopped, said.append)
    assert "lora4" not in trained
    assert "residual-mlp2" in trained
    assert "tilted: lora4: 3 of 3 seeds are finished already" in said
    assert [(stopped / name).read_bytes() for name in FILES] == whole
    assert [path.name for path in stopped.parent.iterdir()] == ["run"]


def test_a_damaged_part_is_trained_again(model, stopped, whole):
    (part,) = stopped.parent.rglob("*.npz")
    part.write_bytes(part.read_bytes()[:100])
    study(model, stopped)
    assert [(stopped / name).read_bytes() for name in FILES] == whole


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"config": dataclasses.replace(CONFIG, seeds=4)}, "seeds was 3 and is now 4"),
        (
            {"config": dataclasses.replace(CONFIG, head=(dataclasses.replace(CONFIG.head[0], steps=22),))},
            "head.0.steps was 20 and is now 22",
        ),
        ({"target": synthetic.target(unlabelled=11)}, "the data of tilted changed"),
        ({"target": synthetic.target(weight=np.linspace(1, 2, 40))}, "the data of tilted changed"),
        ({"target": synthetic.target(name="other")}, "the data of other is new"),
    ],
)
def test_a_study_that_would_differ_is_refused(model, stopped, change, difference):
    with pytest.raises(ConfigError, match=f"holds an unfinished run that differs: {difference}. Remove it"):
        study(model, stopped, **change)
    assert list(stopped.parent.rglob("*.npz"))


def result_of(rows):
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(size=(5, *shape))
        for name, shape in {"p": (7,), "u": (4,), "a": (2, 3), "c": ()}.items()
    }
    return AdaptationResult(
        configuration=Configuration.parse("lora4"),
        predictions=values["p"][rows],
        unseen=values["u"][rows],
        adapters={"mlp2": {"dense_0": {"lora_a": values["a"][rows].astype(np.float32)}}},
        chosen={"step": values["c"][rows]},
    )


def test_seeds_are_found_in_whatever_parts_they_are(tmp_path, model):
    """As a run of two processes left them, for a run of one or three."""
    record = record_of(model, [synthetic.target()], [SPLITS], CONFIG)
    parts, everyone = Parts(tmp_path / "run", record), np.arange(5)
    for rows in ([0, 1, 2], [3, 4], [2, 3]):
        parts.write("tilted", "lora4", to_seeds(result_of(np.array(rows)), np.array(rows)))
    assert parts.read("tilted", "lora1", everyone) is None
    for wanted in ([0, 1, 2, 3, 4], [1], [2, 3], [4, 7]):
        found = parts.read("tilted", "lora4", np.array(wanted))
        expected = [row for row in wanted if row < 5]
        assert found["seed"].tolist() == expected
        again, was = from_seeds(Configuration.parse("lora4"), found), result_of(np.array(expected))
        np.testing.assert_array_equal(again.predictions, was.predictions)
        np.testing.assert_array_equal(again.unseen, was.unseen)
        leaf = again.adapters["mlp2"]["dense_0"]["lora_a"]
        np.testing.assert_array_equal(leaf, was.adapters["mlp2"]["dense_0"]["lora_a"])
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(again.chosen["step"], was.chosen["step"])


def test_joined_seeds_are_in_order():
    first, second = (to_seeds(result_of(np.array(rows)), np.array(rows)) for rows in ([1, 4], [0, 2]))
    assert joined_seeds([first, {}, second])["seed"].tolist() == [0, 1, 2, 4]
    assert joined_seeds([]) == {}


def test_seeds_that_are_missing_train_as_they_do_together(model, tmp_path):
    """As in a process that has a share of the seeds: the program has fewer of them, and rounds otherwise."""
    target, configuration = synthetic.target(), Configuration.parse("lora4")
    record = record_of(model, [target], [SPLITS], CONFIG)

    def run(out):
        return shares.SharedAdaptation(model, target, SPLITS, CONFIG, Parts(out, record)).run(configuration)

    together = run(tmp_path / "first")
    parts = Parts(tmp_path / "second", record)
    parts.write(
        "tilted", "lora4", {name: array[:1] for name, array in to_seeds(together, np.arange(3)).items()}
    )
    apart = run(tmp_path / "second")
    for name, values in together.chosen.items():
        np.testing.assert_array_equal(apart.chosen[name], values)
    # float32, in units of dex
    np.testing.assert_allclose(apart.predictions, together.predictions, rtol=1e-4, atol=1e-4)
