import functools

import numpy as np
import pytest

from experiments import mean_intervals
from experiments.suite import cases
from specjax.report.results import read_calibration
from tests import synthetic
from tests.experiments.suite.small import case

CONFIG = mean_intervals.Config(configurations=("lora4",), times=2, seeds=3, train=15, validate=4)


def test_seeds_share_the_stars_that_are_set_aside_and_split_the_others():
    outer = case().splits
    splits = mean_intervals.split_known(outer, 1, CONFIG)
    assert len(splits) == 3
    for train, validate, test in zip(splits.train, splits.validate, splits.test, strict=True):
        np.testing.assert_array_equal(test, outer.test[1])
        assert len({*train, *validate}) == 19
        assert {*train, *validate} <= {*outer.unseen[1]}
    assert len({tuple(np.sort(train)) for train in splits.train}) == 3


@pytest.mark.usefixtures("quick_compilation")
def test_only_stars_that_are_set_aside_are_scored(monkeypatch, tmp_path, capsys):
    one = case()
    monkeypatch.setattr(cases, "load_cases", lambda config: [one])
    monkeypatch.setattr(mean_intervals, "AdaptConfig", lambda: synthetic.ADAPT)
    used = []
    monkeypatch.setattr(
        mean_intervals,
        "intervals_of_mean",
        functools.partial(_recording, mean_intervals.intervals_of_mean, used),
    )
    mean_intervals.main(mean_intervals.dataclasses.replace(CONFIG, out=tmp_path / "run"))
    for time, (splits, test) in enumerate(used):
        np.testing.assert_array_equal(test, one.splits.test[time])
        assert not {*splits.unseen.ravel()} & {*test}
    rows = read_calibration(tmp_path / "run")
    whole = next(row for row in rows if row["subset"] == "all")
    assert whole["n_predictions"] == one.splits.test.size
    assert whole["coverage68"] <= whole["coverage95"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def _recording(function, used, target, splits, result, test):
    used.append((splits, test))
    return function(target, splits, result, test)
