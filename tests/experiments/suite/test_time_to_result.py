import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.suite import time_to_result, timed
from specjax.adapt.configuration import Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import draw_splits
from specjax.adapt.stage import Stage
from specjax.progress import silent
from tests import synthetic


def test_rows_are_new_processes(monkeypatch, tmp_path):
    called = []

    def run(words, **environment):
        called.append((words[-3:], environment["SPECJAX_CACHE"]))
        paper = words[-3] == "paper"
        found = {"seconds": 100.0 if paper else 2.0, "again": 1.0, "extrapolated": paper, "peak": 0}
        return SimpleNamespace(out=json.dumps(found), cpu=3.0, memory=2**30)

    monkeypatch.setattr("benchmarks.processes.run", run)
    config = time_to_result.TimeToResult(configurations=("zero-shot-mlp1", "lora1+lora2"), seeds=2)
    results = time_to_result.run(config, tmp_path, silent)
    assert [words for words, _ in called] == [
        [preset, name, 2] for preset in config.presets for name in config.configurations
    ]
    assert len({cache for _, cache in called}) == len(called)  # each with an empty cache
    assert [row["measured"] for row in results.rows] == ["whole", "whole", "from steps", "from steps"]
    assert "added up from steps" not in results.sentences[0]
    assert "lora1+lora2 1.7 min (1 s with compiled programs, added up from steps)" in results.sentences[1]
    assert "1.0 GiB" in results.answers["time"]
    results.write(tmp_path)


def test_what_an_adaptation_of_the_backbone_is_made_of():
    config = AdaptConfig(
        train=60, validate=10, joint=(Stage(steps=60, batch=20, snapshots=6),), tower_folds=3
    )
    counts = timed.arithmetic(config, seeds=2, stars=120)
    assert counts["trained"] == 2 * 60 * 20 * 4
    assert counts["passed"] == 2 * (6 * 3 * 70 + 120)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_whole_runs_and_steps_are_timed(monkeypatch):
    """On a tiny model; no figure is compared, as clocks are not for tests."""
    model, target = synthetic.foundation(), synthetic.target()
    splits = draw_splits(40, seeds=2, train=20, validate=4)
    configuration = Configuration.parse("lora1")
    monkeypatch.setattr(timed, "STARS", 40)
    for run in (timed._whole, timed._steps):
        times = run(model, target, splits, synthetic.ADAPT, configuration)
        assert all(np.isfinite(value) and value > 0 for value in times.values())
