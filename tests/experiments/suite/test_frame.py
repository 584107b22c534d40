import dataclasses
import math

import numpy as np
import pytest
from astropy.table import Table

from experiments.suite import few_shot
from experiments.suite.frame import (
    BASELINE,
    SCORES,
    Column,
    Config,
    Kept,
    Results,
    beside_strongest,
    command,
    figure_of,
)
from specjax.errors import ConfigError, DataError


def score(name, sigma, kind="adapted", **others):
    return {
        "target": "t", "name": name, "kind": kind, "sigma": sigma, "sigma_lo": sigma - 0.01,
        "sigma_hi": sigma + 0.01, "r2": 0.5, "bias": math.nan, **others,
    }  # fmt: skip


def results(**changes):
    rows = beside_strongest([score("lora4", 0.2), score("ridge", 0.3, "baseline")])
    made = {
        "name": "few_shot",
        "title": "Few labels",
        "question": "How many?",
        "method": "Measured here.",
        "columns": (Column(name="name", heading="row"), *SCORES, *BASELINE),
        "rows": rows,
        "sentences": ["One.", "Two."],
        "answers": {"labels": "Many."},
        "draw": lambda figure: figure.subplots().plot([1, 2]),
    }
    return Results(**{**made, **changes})


def test_a_row_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return score("a", 0.1)

    first = Kept(tmp_path, Config()).row("t/a", make)
    again = Kept(tmp_path, Config()).row("t/a", make)
    assert len(made) == 1
    assert math.isnan(first["bias"])
    assert {**first, "bias": 0} == {**again, "bias": 0}


def test_arrays_are_kept_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3))
    values[0, 0] = np.nan
    kept = Kept(tmp_path, Config())
    np.testing.assert_array_equal(kept.array("a", lambda: values), values)
    np.testing.assert_array_equal(kept.array("a", lambda: pytest.fail("made again")), values)


def test_a_row_that_fails_leaves_nothing(tmp_path):
    kept = Kept(tmp_path, Config())

    def fail():
        raise DataError("no stars")

    with pytest.raises(DataError, match="no stars"):
        kept.row("a", fail)
    assert kept.row("a", lambda: {"sigma": 1.0}) == {"sigma": 1.0}


def test_rows_of_other_settings_are_refused(tmp_path):
    Kept(tmp_path, Config(seeds=2))
    with pytest.raises(ConfigError, match="seeds was 2 and is now 3"):
        Kept(tmp_path, Config(seeds=3))


def test_the_strongest_baseline_is_that_of_the_group():
    rows = [
        score("lora4", 0.2, n=5),
        score("ridge", 0.3, "baseline", n=5),
        score("gp", 0.25, "baseline", n=5),
        score("broken", math.nan, "baseline", n=5),
        score("lora4", 0.1, n=10),
    ]
    named = beside_strongest(rows, by=("target", "n"))
    assert [row["baseline"] for row in named] == ["gp", "gp", "gp", "gp", ""]
    assert (named[0]["baseline_sigma"], named[0]["baseline_sigma_hi"]) == (0.25, 0.26)
    assert math.isnan(named[-1]["baseline_sigma"])


def test_results_are_read_as_they_were_written(tmp_path):
    written = results()
    written.write(tmp_path)
    found = Results.read(tmp_path)
    for field in dataclasses.fields(Results):
        if field.name not in ("rows", "draw"):
            assert getattr(found, field.name) == getattr(written, field.name), field.name
    assert [row["sigma"] for row in found.rows] == [0.2, 0.3]
    assert math.isnan(found.rows[0]["bias"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.json", "table.ecsv", "plot.png", "plot.pdf",
    }  # fmt: skip


def test_the_table_has_units_and_intervals(tmp_path):
    results().write(tmp_path)
    table = Table.read(tmp_path / "table.ecsv")
    assert table["sigma_lo"].unit == table["baseline_sigma_hi"].unit == "dex"
    assert "r2_lo" not in table.colnames
    np.testing.assert_array_equal(table["baseline_sigma"], [0.3, 0.3])


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "table.json").write_text("[]")
    with pytest.raises(DataError, match="is not the table of an experiment"):
        Results.read(tmp_path)


def test_figures_in_sentences_have_interval_and_unit():
    row = {"sigma": 0.17, "sigma_lo": 0.154, "sigma_hi": 0.186, "gain": 0.5}
    assert figure_of(row) == "0.170 [0.154, 0.186] dex"
    assert figure_of(row, "gain", "", signed=True) == "+0.500"


def test_the_command_line_has_the_settings_and_the_folder(monkeypatch, tmp_path):
    ran = []

    def run(config, out, say):
        ran.append((config, out))
        return results()

    words = ["few_shot", "--seeds", "2", "--counts", "5", "25", "--adapt.folds", "3", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("specjax.cache.use_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as ended:
        command("few_shot", few_shot.get_config(), run, few_shot.__doc__)
    assert ended.value.code in (0, None)
    ((config, out),) = ran
    assert type(config) is few_shot.FewShot
    assert (config.seeds, config.counts, config.adapt.folds, out) == (2, (5, 25), 3, tmp_path)
    assert (tmp_path / "table.json").exists()
