import numpy as np
import pytest

from specjax.calibration.calibration import Intervals
from specjax.report.calibration import calibration_lines, calibration_rows, calibration_subsets
from specjax.report.calibration_plot import plot_calibration
from specjax.report.results import read_calibration, write_calibration


def example(seeds=3, n=40, width=1.0):
    """Predictions with normal errors, and their intervals times a width."""
    rng = np.random.default_rng(0)
    truth = np.tile(np.linspace(-2, 0.4, n), (seeds, 1))
    predicted = truth + 0.1 * rng.normal(size=truth.shape)
    half = np.full(truth.shape, 0.1 * width)
    intervals = Intervals(
        half, predicted - half, predicted + half, predicted - 2 * half, predicted + 2 * half
    )
    stars = np.tile([f"s{k}" for k in range(n)], (seeds, 1))
    return {"truth": truth, "predicted": predicted, "intervals": intervals, "stars": stars}


def subsets(given, snr=None):
    snr = np.full(given["truth"].shape, np.nan) if snr is None else snr
    return calibration_subsets(
        fe_h=given["truth"], predicted=given["predicted"], snr=snr, edges=(-1.0,), symbol="[Fe/H]"
    )


def test_scores_of_each_subset():
    given = example()
    rows = {row["subset"]: row for row in calibration_rows(**given, subsets=subsets(given))}
    assert list(rows) == ["all", "fe_h>=-1", "fe_h<-1", "predicted [Fe/H]>=-1", "predicted [Fe/H]<-1"]
    error = np.abs(given["predicted"] - given["truth"])
    poor = given["truth"] < -1
    for name, mask in (("all", np.ones_like(poor)), ("fe_h<-1", poor), ("fe_h>=-1", ~poor)):
        row = rows[name]
        assert row["coverage68"] == pytest.approx((error[mask] <= 0.1).mean())
        assert row["coverage95"] == pytest.approx((error[mask] <= 0.2).mean())
        assert row["n_predictions"] == 3 * row["n_stars"] == mask.sum()
        assert row["coverage68_lo"] < row["coverage68"] < row["coverage68_hi"]
        assert (row["width68"], row["width95"]) == (pytest.approx(0.2), pytest.approx(0.4))


def test_intervals_are_over_stars_and_not_over_predictions():
    """The same predictions by four times as many seeds are no further evidence."""
    few, many = example(seeds=1), {}
    for name, value in few.items():
        many[name] = (
            Intervals(*(np.repeat(each, 4, axis=0) for each in value))
            if name == "intervals"
            else np.repeat(value, 4, axis=0)
        )
    one, four = (calibration_rows(**given, subsets=subsets(given))[0] for given in (few, many))
    for name in ("coverage68", "coverage68_lo", "coverage68_hi", "crps"):
        assert one[name] == pytest.approx(four[name])


def test_the_right_width_has_the_best_crps():
    crps = {}
    for width in (0.3, 1.0, 3.0):
        given = example(width=width)
        crps[width] = calibration_rows(**given, subsets=subsets(given))[0]["crps"]
    assert min(crps, key=crps.get) == 1.0


def test_snr_is_divided_into_thirds_only_where_it_varies():
    given = example()
    wide, narrow = np.tile(np.linspace(5, 50, 40), (3, 1)), np.tile(np.linspace(50, 52, 40), (3, 1))
    thirds = [name for name in subsets(given, wide) if "snr" in name]
    assert len(thirds) == 3
    assert (sum(subsets(given, wide)[name].astype(int) for name in thirds) == 1).all()
    assert not [name for name in subsets(given, narrow) if "snr" in name]


def test_predictions_without_an_interval_are_left_out(tmp_path):
    given = example()
    none = Intervals(*(np.full_like(each, np.nan) for each in given["intervals"]))
    assert calibration_rows(**{**given, "intervals": none}, subsets=subsets(given)) == []
    write_calibration(tmp_path, [])
    assert read_calibration(tmp_path) == []


def test_files_lines_and_plot(tmp_path):
    given = example()
    rows = [
        {"target": "t", "configuration": name, **row}
        for name in ("zero-shot-mlp2", "lora4")
        for row in calibration_rows(**given, subsets=subsets(given))
    ]
    write_calibration(tmp_path, rows)
    assert read_calibration(tmp_path) == rows
    kinds = {"zero-shot-mlp2": "zero-shot", "lora4": "adapted"}
    scores = [{"target": "t", "configuration": name, "kind": kind} for name, kind in kinds.items()]
    (line,) = calibration_lines(scores, rows)
    assert line.startswith("t: lora4: the 68% and 95% intervals of single seeds contain ")
    assert f"{100 * rows[5]['coverage68']:.0f}% [" in line
    assert "below [Fe/H] = -1" in line
    assert plot_calibration(tmp_path / "c.png", rows).read_bytes().startswith(b"\x89PNG")
