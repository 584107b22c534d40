"""Tests of the benchmarks' results: ratios, blank cells, files, resumption, plots and the order of calls."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from matplotlib import image

from benchmarks import __main__ as program
from benchmarks import environment, processes, report, results, timing
from benchmarks.comparison import BATCHED, COMPILED, FUSED, LOOP, Comparison
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
    "load": [0.1, 1.5],
}


def row(**changes):
    times = {"specjax": [1.0, 2.0, 9.0], LOOP: [6.0, 6.0, 6.0], LOOP + COMPILED: [2.0, 8.0, 18.0]}
    return Row(**{"section": "a", "what": "sums", "count": 8, "unit": "sums", "times": times, **changes})


def sections(*rows, letter="a", finished=True):
    section = results.Section(
        environment=ENVIRONMENT, options={}, peaks=PEAKS, rows=list(rows), finished=finished
    )
    return {letter: section}


def test_ratios_are_taken_within_rounds():
    assert row().ratios(LOOP) == [6.0, 3.0, 6.0 / 9.0]
    assert row().ratio(LOOP) == 3.0
    assert row().ratio(LOOP + COMPILED) == 2.0
    assert row().ratio() == 2.0
    assert row(times={"specjax": [2.0], LOOP: [3.0]}).ratio() == 1.5
    assert math.isnan(row(times={"specjax": [2.0]}).ratio())


def test_the_floor_is_the_larger_of_the_times_of_computing_and_of_copying():
    assert row(flops=5e8, bytes=2e7).floor(PEAKS) == 0.5
    assert row(flops=1e8, bytes=2e7).floor(PEAKS) == 0.2
    assert row(bytes=2e7).floor(PEAKS) == 0.2


def test_columns_without_a_measurement_are_left_out():
    names, lines = report.table(sections(row(times={"specjax": [2.0]}))["a"])
    assert names == ["what", "median s", "per second"]
    assert lines == [["sums", "2", "4 sums"]]
    markdown = report.markdown(sections(row(times={"specjax": [2.0]})))
    assert "nan" not in markdown.lower()
    assert "| sums | 2 | 4 sums |" in markdown


def test_every_side_has_a_line():
    found = row(flops=5e8, first={LOOP: 7.0}, cpu={"specjax": [3.0, 4.0, 5.0]}, memory={LOOP: 2**31})
    names, lines = report.table(sections(found)["a"])
    by_name = [dict(zip(names, line, strict=True)) for line in lines]
    assert [line["side"] for line in by_name] == ["specjax", LOOP, LOOP + COMPILED]
    assert [line["what"] for line in by_name] == ["sums", "", ""]
    assert by_name[0]["range s"] == "1 to 9"
    assert by_name[0]["of peak"] == "25%"
    assert by_name[0]["per CPU s"] == "2"
    assert by_name[1]["ratio"] == "3.00 (0.67 to 6.00)"
    assert by_name[1]["first s"] == "7"
    assert by_name[1]["memory"] == "2.00 GiB"


def test_the_file_keeps_everything(tmp_path):
    path = tmp_path / "deep" / "bench.json"
    written = sections(row(flops=5e8, of_core=[0.5]), row(what="more"), finished=False)
    results.write(path, written)
    whole = json.loads(path.read_text(), parse_constant=pytest.fail)
    entry = whole["sections"]["a"]["rows"][0]
    assert entry["times"]["specjax"] == [1.0, 2.0, 9.0]
    assert entry["floor"] == 0.5
    assert entry["bytes"] is None
    again = results.read(path)
    assert repr(again) == repr(written)  # NaN differs from itself
    assert report.markdown(again) == report.markdown(written)


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="another version"):
        results.read(path)


def test_finished_sections_are_kept(tmp_path):
    path = tmp_path / "bench.json"
    assert results.kept(path, {}, ()) == {}
    both = sections(row()) | sections(row(), letter="b", finished=False) | sections(row(), letter="c")
    results.write(path, both)
    assert list(results.kept(path, {}, ())) == ["a", "c"]
    assert list(results.kept(path, {}, ("c",))) == ["a"]
    with pytest.raises(ValueError, match=r"section a .* another repeats"):
        results.kept(path, {"repeats": 3}, ())


def test_calls_alternate_after_a_first_round_that_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("specjax", LOOP)}
    found = timing.time_alternating(calls, repeats=3, limit=1e9)
    assert order == ["specjax", LOOP] * 4
    assert [len(each) for each in found.times.values()] == [3, 3]
    assert [len(each) for each in found.cpu.values()] == [3, 3]
    assert found.first.keys() == calls.keys()


def test_a_slow_call_is_timed_twice_only():
    order = []
    timing.time_alternating({"specjax": lambda: order.append(1)}, repeats=9, limit=0)
    assert len(order) == 3


def fails():
    raise RuntimeError("no working C++ compiler | found\nin a long list of places")


def test_a_side_that_fails_is_left_out_with_a_note():
    found = timing.time_alternating(
        {"specjax": lambda: None, LOOP + COMPILED: fails, LOOP: lambda: None}, repeats=1, limit=0
    )
    assert list(found.times) == ["specjax", LOOP]
    said = "PyTorch, compiled does not work here: RuntimeError: no working C++ compiler / found"
    assert found.failures == [said]
    with pytest.raises(RuntimeError, match="compiler"):
        timing.time_alternating({"specjax": fails}, repeats=1, limit=0)


class Training:
    """Stands in for one of PyTorch and says what it is asked for."""

    def loop(self, seeds, *, fused=False, compiled=False):
        return ("loop", seeds, fused, compiled)

    def batched(self, seeds, *, compiled=False):
        return ("batched", seeds, compiled)


def test_sides_of_a_training():
    comparison = Comparison(Options(torch=False), Bench(None).model)
    assert comparison.calls(None, 4) == {}
    assert comparison.training("contrastive") is None
    assert comparison.calls(Training(), 4) == {
        LOOP: ("loop", 4, False, False),
        FUSED: ("loop", 4, True, False),
        BATCHED: ("batched", 4, False),
        LOOP + COMPILED: ("loop", 4, False, True),
        FUSED + COMPILED: ("loop", 4, True, True),
        BATCHED + COMPILED: ("batched", 4, True),
    }
    # One seed has nothing to batch.
    assert {call[0] for call in comparison.calls(Training(), 1).values()} == {"loop"}
    comparison.compiling = False
    assert list(comparison.calls(Training(), 4)) == [LOOP, FUSED, BATCHED]


def test_the_plot_has_a_panel_for_each_kind_of_row(tmp_path):
    path = tmp_path / "bench.png"
    points = [row(count=count, panel="lora4") for count in (1, 8)]
    spectra = [row(count=count, panel="embedding", curve="mini") for count in (1, 8)]
    report.plot(path, sections(*points, *spectra), "abacus")
    both = image.imread(path).shape
    report.plot(path, sections(*points), "abacus")
    assert image.imread(path).shape[1] == both[1] / 2


def test_curves_are_named_after_rows_or_sides():
    points = [
        row(count=count, panel="survey", curve="raw", memory={"specjax": count * 2**30}) for count in (8, 1)
    ]
    assert report.curves(points, "survey") == {
        "raw": [(1, 2.0), (8, 2.0)],
        LOOP: [(1, 6.0), (8, 6.0)],
        LOOP + COMPILED: [(1, 8.0), (8, 8.0)],
    }
    assert report.curves(points, "memory") == {"raw": [(1, 1.0), (8, 8.0)]}


def test_no_plot_without_a_curve(tmp_path):
    report.plot(tmp_path / "bench.png", sections(row()), "abacus")
    assert not list(tmp_path.iterdir())


def test_a_line_of_progress_has_times_and_note():
    assert report.one_line(row()) == "a  sums: specjax 2 s, PyTorch 6 s, PyTorch, compiled 8 s"
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


CHILD = """
import subprocess, sys, time
held = bytearray(2**26)
held[::4096] = b"x" * len(held[::4096])
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
else:
    time.sleep(1)
print(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_memory_of_a_command_includes_that_of_its_children():
    done = processes.run([sys.executable, "-c", CHILD, CHILD])
    assert done.out.splitlines()[-1] == "7"
    assert done.seconds > 1
    # Two arrays of 64 MiB, and two interpreters of a few MiB each.
    assert 2**27 < done.memory < 2**27 + 2**26


def test_a_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        processes.run([sys.executable, "-c", "raise SystemExit('no such thing')"])


class Bench:
    """Stands in for the sections; the second one is interrupted once."""

    dtype = "float32"
    interrupt = True

    def __init__(self, options):
        from tests.models.tiny import TINY

        self.model = type("Model", (), {"config": TINY, "dtype": "float32"})

    def a(self):
        yield row(panel="lora4")
        yield row(what="more sums")

    def b(self):
        yield row(section="b")
        if Bench.interrupt:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_its_results_and_is_resumed(tmp_path, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(program, "Bench", Bench)
    monkeypatch.setattr(program, "measure_device", lambda dtype: measured.append(dtype) or PEAKS)
    out = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        program.main(Options(out=out, only=("a", "b")))
    found = results.read(out)
    assert [len(section.rows) for section in found.values()] == [2, 1]
    assert [section.finished for section in found.values()] == [True, False]
    assert out.with_suffix(".png").exists()
    first = found["a"].environment["date"]
    found["a"].environment["date"] = "long ago"
    results.write(out, found)
    monkeypatch.setattr(Bench, "interrupt", False)
    monkeypatch.setattr(report, "HEADINGS", {"a": "First", "b": "Second"})
    program.main(Options(out=out, resume=True))
    again = results.read(out)
    assert all(section.finished for section in again.values())
    assert again["a"].environment["date"] == "long ago"
    assert again["b"].environment["date"] >= first
    assert "more sums" in capsys.readouterr().out
    # Nothing is left to do, so that not even the peaks are measured.
    program.main(Options(out=out, resume=True))
    assert len(measured) == 2


def test_options_parse():
    words = "--full --resume --only a h --no-torch-compile --dtype bfloat16 --out runs/x.json".split()
    options = tyro.cli(Options, args=words)
    assert options.only == ("a", "h")
    assert options.resume
    assert not options.torch_compile
    assert options.pick(1, 2, 3) == 3
    assert [Options(quick=True).pick(1, 2, 3), Options().pick(1, 2, 3)] == [1, 2]
    with pytest.raises(SystemExit):
        tyro.cli(Options, args=["--only", "z"])
