"""Tests of the table of benchmarks: ratios, blank cells, and the order of calls."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from benchmarks import __main__ as program
from benchmarks import environment, report, timing
from benchmarks.comparison import Comparison
from benchmarks.options import Options
from benchmarks.timing import DevicePeaks, Row

ROOT = Path(__file__).parents[2]
PEAKS = DevicePeaks(flops=1e9, bandwidth=1e8)
ENVIRONMENT = {
    "device": "abacus",
    "cores": 2,
    "dtype": "float32",
    "date": "today",
    "versions": {"jax": "1"},
    "peak_memory": 2**30,
}


def row(**changes):
    times = {"specjax": [1.0, 2.0, 9.0], "torch": [6.0], "torch.compile": [4.0]}
    return Row(**{"section": "a", "what": "sums", "count": 8, "unit": "sums", "times": times, **changes})


def test_ratio_compares_medians_with_the_faster_of_the_others():
    assert row().ratio() == 4.0 / 2.0
    assert row(times={"specjax": [2.0], "torch": [3.0]}).ratio() == 1.5


def test_the_floor_is_the_larger_of_the_times_of_computing_and_of_copying():
    assert row(flops=5e8, bytes=2e7).floor(PEAKS) == 0.5
    assert row(flops=1e8, bytes=2e7).floor(PEAKS) == 0.2
    assert row(bytes=2e7).floor(PEAKS) == 0.2


def test_cells_without_a_measurement_are_blank():
    alone = row(times={"specjax": [2.0]})
    assert math.isnan(alone.ratio())
    assert math.isnan(alone.floor(PEAKS))
    assert report.cells(alone, PEAKS)[4:10] == [""] * 6
    table = report.markdown([alone], ENVIRONMENT, PEAKS)
    assert "nan" not in table.lower()
    assert "| sums | 2 | 4 sums |" in table


def test_json_keeps_every_time_and_no_nan(tmp_path):
    path = tmp_path / "deep" / "bench.json"
    report.write_json(path, [row(flops=5e8)], ENVIRONMENT, PEAKS)
    whole = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert whole["device"] == "abacus"
    assert whole["rows"][0]["times"]["specjax"] == [1.0, 2.0, 9.0]
    assert whole["rows"][0]["floor"] == 0.5
    assert whole["rows"][0]["bytes"] is None


def test_calls_alternate_after_a_first_round_that_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("specjax", "torch")}
    times, first = timing.time_alternating(calls, repeats=3, limit=1e9)
    assert order == ["specjax", "torch"] * 4
    assert [len(each) for each in times.values()] == [3, 3]
    assert first >= 0


def test_a_slow_call_is_timed_twice_only():
    order = []
    timing.time_alternating({"specjax": lambda: order.append(1)}, repeats=9, limit=0)
    assert len(order) == 3


def test_the_plot_has_both_curves(tmp_path):
    path = tmp_path / "bench.png"
    curves = {
        "spectra": {"embedding": [(1, 1.0), (8, 8.0)]},
        "seeds": {"run": [(1, 1.0), (8, 2.0)], "b": [(1, 2.0)]},
    }
    report.plot_curves(path, curves, "abacus")
    both = image.imread(path).shape
    report.plot_curves(path, {**curves, "seeds": {}}, "abacus")
    assert image.imread(path).shape[1] == both[1] / 2


def test_a_line_of_progress_has_times_and_note():
    assert report.one_line(row()) == "a  sums: specjax 2 s, torch 6 s, torch.compile 4 s"
    assert report.one_line(row(times={"specjax": [2.0]}, note="why")) == "a  sums: specjax 2 s, why"


def test_peak_memory_excludes_the_parent_process():
    held = bytearray(2**28)
    held[::4096] = b"x" * len(held[::4096])
    program = "from benchmarks.environment import process_peak; print(process_peak())"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert environment.process_peak() - int(shown.stdout) > 2**27
    assert held


def test_no_plot_without_a_curve(tmp_path):
    report.plot_curves(tmp_path / "bench.png", {"spectra": {}, "seeds": {}}, "abacus")
    assert not list(tmp_path.iterdir())


class Side:
    """Stands in for PyTorch, whose compiler may be missing."""

    def __init__(self, fails):
        self.fails = fails

    def embed(self, flux, *, compile_it=False):
        def call():
            if compile_it and self.fails:
                raise RuntimeError("no working C++ compiler | found\nin a long list of places")

        return call


@pytest.mark.parametrize("fails", [True, False])
def test_a_failure_of_torch_compile_is_noted(fails):
    options = Options(torch=False)
    comparison = Comparison(options, None, "float32")
    assert comparison.calls("embed", 1) == ({}, "")
    comparison.torch = Side(fails)
    calls, note = comparison.calls("embed", 1, compile_too=True)
    assert list(calls) == (["torch"] if fails else ["torch", "torch.compile"])
    said = "torch.compile does not work here: RuntimeError: no working C++ compiler / found"
    assert note == (said if fails else "")
    # It is used only if asked for.
    assert list(comparison.calls("embed", 1)[0]) == ["torch"]


def test_an_interrupted_run_keeps_its_results(tmp_path, monkeypatch):
    class Bench:
        dtype, curves = "float32", {"spectra": {"embedding": [(1, 1.0)]}, "seeds": {}}

        def __init__(self, options):
            pass

        def a(self):
            yield row()
            yield row(what="more sums")

        def b(self):
            yield row(section="b")
            raise KeyboardInterrupt

    monkeypatch.setattr(program, "Bench", Bench)
    monkeypatch.setattr(program, "measure_device", lambda dtype: PEAKS)
    out = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        program.main(Options(out=out))
    assert [line["section"] for line in json.loads(out.read_text())["rows"]] == ["a", "a", "b"]
    assert out.with_suffix(".png").exists()
