import dataclasses
import io
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from specjax.errors import DataError
from specjax.report import metrics, results


@dataclasses.dataclass(frozen=True)
class Stage:
    steps: int
    rate: float


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    fe_h = rng.uniform(-2.5, 0.4, size=(4, 30))
    zero, adapted = fe_h + rng.normal(0, 0.3, fe_h.shape), fe_h + rng.normal(0, 0.1, fe_h.shape)
    stars = np.tile(np.arange(30), (4, 1))
    scores = metrics.summarise(fe_h, zero, fe_h=fe_h, stars=stars)
    gains = metrics.summarise(fe_h, adapted, fe_h=fe_h, stars=stars, reference=zero)
    baseline = metrics.summarise(fe_h, zero + 0.1, fe_h=fe_h, stars=stars)
    return [
        *results.table_rows("stelib", "gp-target", baseline, kind="baseline"),
        *results.table_rows("stelib", "zero-shot-mlp2", scores, kind="zero-shot"),
        *results.table_rows("stelib", "lora4", gains, kind="adapted"),
        *results.table_rows("other", "zero-shot-mlp2", scores, kind="zero-shot"),
    ]


def test_rows_carry_target_configuration_and_kind():
    (row,) = results.table_rows("t", "gp-joint", [{"subset": "all"}], kind="baseline")
    about = {"target": "t", "label": "fe_h", "configuration": "gp-joint", "kind": "baseline"}
    assert row == {**about, "subset": "all"}


def test_the_table_round_trips_with_all_its_digits(tmp_path, rows):
    path = results.write_table(tmp_path / "run", rows)
    again = results.read_table(tmp_path / "run")
    np.testing.assert_equal(again, rows)  # equal to the last digit, NaN equal to NaN
    on_disk = json.loads(path.read_text())
    assert on_disk[0]["sigma_gain"] is None
    wanted = {"target", "configuration", "subset", "n_stars", "n_seeds", "sigma_gain_p"}
    wanted |= {f"{name}{end}" for name in metrics.SCORES for end in ("", "_lo", "_hi", "_std")}
    assert wanted <= on_disk[0].keys()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"sigma": 1}'])
def test_a_file_that_is_not_a_table_is_refused(tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DataError, match="table"):
        results.read_table(tmp_path)
    with pytest.raises(DataError, match="table"):
        results.read_table(tmp_path / "nowhere")


def test_config_is_written_with_paths_dataclasses_and_arrays(tmp_path):
    config = {
        "out": Path("runs/demo"),
        "stages": (Stage(steps=10, rate=1e-3), Stage(steps=5, rate=math.nan)),
        "seeds": np.arange(2),
        "scale": jnp.float32(0.5),
        "flag": np.bool_(True),
        "none": None,
    }
    path = results.write_config(tmp_path, config)
    assert json.loads(path.read_text()) == {
        "out": "runs/demo",
        "stages": [{"steps": 10, "rate": 1e-3}, {"steps": 5, "rate": None}],
        "seeds": [0, 1],
        "scale": 0.5,
        "flag": True,
        "none": None,
    }
    with pytest.raises(TypeError, match="object"):
        results.write_config(tmp_path, {"x": object()})
    assert json.loads(path.read_text())["scale"] == 0.5


def printed(rows, **options):
    stream = io.StringIO()
    results.print_table(rows, console=Console(file=stream, **options))
    return stream.getvalue()


def test_the_printed_tables_have_every_configuration_once_and_all_intervals(rows):
    text = printed(rows)
    assert text.count("lora4") == 2
    assert text.count("zero-shot-mlp2") == 4
    lines = [line for line in text.splitlines() if line.split()[:1] == ["lora4"]]
    subsets = {r["subset"]: r for r in rows if r["configuration"] == "lora4"}
    for line, subset, name, sign in (
        (0, "all", "sigma", ""),
        (0, "all", "r2", ""),
        (0, "all", "sigma_gain", "+"),
        (0, "all", "r2_gain", "+"),
        (1, "fe_h>=-1", "sigma", ""),
        (1, "fe_h<-1", "r2", ""),
    ):
        value, low, high = (f"{subsets[subset][f'{name}{end}']:{sign}.3f}" for end in ("", "_lo", "_hi"))
        assert f"{value} [{low}, {high}]" in lines[line]
    assert "nan" not in text


def test_nothing_is_cut_in_a_narrow_terminal(rows):
    wide, narrow = (printed(rows, force_terminal=True, width=width, no_color=True) for width in (120, 60))
    assert narrow == wide
    assert "…" not in wide


def test_the_best_row_is_bold_and_a_significant_gain_green(rows):
    text = printed(rows, force_terminal=True, width=150, color_system="standard")
    gain = next(r for r in rows if r["configuration"] == "lora4" and r["subset"] == "all")
    assert f"\x1b[1m{gain['sigma']:.3f}" in text
    assert f"\x1b[32m{gain['sigma_gain']:+.3f}" in text
    loss = {**gain, "sigma_gain": -0.2, "sigma_gain_lo": -0.3, "sigma_gain_hi": -0.1}
    options = {"force_terminal": True, "width": 150, "color_system": "standard"}
    assert "\x1b[31m-0.200 [-0.300, -0.100]" in printed([loss], **options)
    unclear = printed([{**loss, "sigma_gain_hi": 0.1}], **options)
    assert "-0.200 [-0.300, +0.100]" in unclear
    assert "\x1b[31m" not in unclear


def test_a_score_without_an_interval_is_printed_alone():
    row = {"subset": "all", "n_seeds": 1, "n_stars": 9, "sigma": 0.1, "sigma_lo": math.nan, "r2": 0.9}
    text = printed(results.table_rows("t", "lora4", [row], kind="adapted"))
    assert "0.100" in text
    assert "0.100 [" not in text


def test_scores_in_kelvin_have_their_unit_and_fewer_decimals(rows):
    kelvin = {**rows[0], "sigma": 112.04, "sigma_lo": 98.96, "sigma_hi": 130.0}
    stream = io.StringIO()
    results.print_table([kelvin], unit="K", console=Console(file=stream))
    assert "112.0 [99.0, 130.0]" in stream.getvalue()
    assert "σ in K" in stream.getvalue()


def test_every_label_has_tables_in_its_unit(rows):
    labels = [{**row, "label": label} for label in ("teff", "fe_h") for row in rows]
    text = printed(labels)
    assert text.count("σ in K") == text.count("σ in dex") > 0
    assert text.index("stelib: Teff") < text.index("σ in K") < text.index("stelib: [Fe/H]")


PREDICTIONS = {
    "id": np.array(["HD 1", "HD 22"]),
    "fe_h": np.array([-0.25, np.nan]),
    "seed": np.array([0, 1]),
    "trusted": np.array([True, False]),
}


def test_predictions_keep_their_units_and_types(tmp_path):
    from astropy.table import Table

    path = results.write_predictions(tmp_path / "run", PREDICTIONS)
    table = Table.read(path)
    assert path.name == "predictions.ecsv"
    assert str(table["fe_h"].unit) == "dex"
    assert [str(s) for s in table["id"]] == ["HD 1", "HD 22"]
    np.testing.assert_array_equal(np.ma.filled(table["fe_h"], np.nan), PREDICTIONS["fe_h"])
    assert table["trusted"].dtype == bool
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_invalid_predictions_leave_no_file(tmp_path):
    with pytest.raises(DataError, match="differ in length"):
        results.write_predictions(tmp_path, {"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(DataError, match="xyz"):
        results.write_predictions(tmp_path, PREDICTIONS, suffix=".xyz")
    assert not any(tmp_path.iterdir())


def test_wide_numbers_are_not_cut(rows):
    """A gain of many digits made the table wider than the console, and ended in an ellipsis."""
    names = ("sigma", "r2", "sigma_gain", "r2_gain")
    big = {f"{name}{end}": -12345.678 for name in names for end in ("", "_lo", "_hi")}
    text = printed([{**row, **big} for row in rows], width=80)
    assert "…" not in text
    assert "-12345.7 [-12345.7, -12345.7]" in text
