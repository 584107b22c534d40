"""The tables of BENCHMARKS.md are those of the JSON files, and targets are taken from the right rows."""

import math
from pathlib import Path

import pytest

from benchmarks import names, page, report, results
from benchmarks.targets import GPU_TARGETS, TARGETS
from benchmarks.timing import Row
from tests.benchmarks.test_benchmarks import row, sections

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_results_give():
    text = (ROOT / "BENCHMARKS.md").read_text()
    assert page.generated(text, ROOT) == text


def test_regions_are_replaced_and_the_rest_is_kept(tmp_path):
    results.write(tmp_path / "x.json", sections(row()))
    text = "before\n<!-- table a from x.json -->\nold\n<!-- end -->\nbetween\n"
    text += (
        "<!-- table b from x.json -->\n<!-- end -->\n<!-- targets from none.json -->\n<!-- end -->\nafter\n"
    )
    (tmp_path / "page.md").write_text(text)
    page.main(page.Options(page=tmp_path / "page.md"))
    made = (tmp_path / "page.md").read_text()
    assert "old" not in made
    assert "| sums | specjax | 2 |" in made
    assert page.NOTHING in made
    assert TARGETS[0].what in made
    for line in ("before", "between", "after"):
        assert line in made.splitlines()
    assert page.generated(made, tmp_path) == made


def of(section, what, count=16, **changes):
    return Row(
        **{"section": section, "what": what, "count": count, "unit": "spectra", "times": {"specjax": [2.0]}}
        | changes
    )


RUN = "LoRA4 run, 60 stars, 80 steps, 16 seeds"
TIMES = {
    "specjax": [1.0],
    "PyTorch": [12.0],
    "PyTorch, fused AdamW": [11.0],
    "PyTorch, compiled": [9.0],
    "torch.func, fused AdamW": [2.0],
    "torch.func, fused AdamW, compiled": [1.5],
}
ROWS = [
    (of("h", "raw files, 100,000 spectra", of_core=[0.7, 0.9, 0.82]), 0, 0.82, True),
    (of("h", "prepared file, 100,000 spectra", of_core=[0.9]), 1, 0.9, False),
    (
        of("k", "host side of a prepared file, 8,192 spectra", 8192, cpu={"specjax": [0.5, 1.0, 2.0]}),
        4,
        8192,
        True,
    ),
    (of("f", names.LONGEST_COMPILATION, 1), 5, 2.0, False),
    (of("f", names.predict_process(1000, "filled", 16), 1000), 6, 2.0, True),
    (of("c", RUN, times=TIMES), 7, 9.0, False),
    (of("c", RUN, times=TIMES), 8, 1.5, True),
]


@pytest.mark.parametrize(("found", "number", "value", "met"), ROWS)
def test_targets_are_met_or_missed(found, number, value, met):
    target, given = TARGETS[number], sections(found, letter=found.section)
    assert target.measure(given) == pytest.approx(value)
    assert target.is_met(value) == met
    assert ("| met |" if met else "| missed |") in report.targets_markdown(given, [target])


def test_the_growth_of_the_memory_is_that_between_two_sizes():
    rows = [
        of("i", f"{kind}, {count} spectra", memory={"specjax": size})
        for kind, count, size in (
            ("raw files", "10,000", 2.0),
            ("raw files", "100,000", 2.1),
            ("prepared file", "10,000", 3.0),
            ("prepared file", "100,000", 6.0),
        )
    ]
    given = sections(*rows, letter="i")
    assert TARGETS[2].measure(given) == pytest.approx(0.05)
    assert TARGETS[3].measure(given) == pytest.approx(1.0)
    assert math.isnan(TARGETS[2].measure(sections(*rows[:1], letter="i")))


def test_what_was_not_measured_stays_blank():
    for target in (*TARGETS, *GPU_TARGETS):
        assert math.isnan(target.measure({}))
        assert report.targets_markdown({}, [target]).endswith("|  |  |")
