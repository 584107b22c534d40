"""The report of a run folder is one valid, self-contained HTML file that shows what the folder holds."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from specjax.cli import main
from specjax.errors import DataError
from specjax.report import metrics, plots, results
from specjax.report.cautions import losses
from specjax.report.glossary import terms
from specjax.report.page import make_page, write_page

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Raises for elements that are not closed in order; collects tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def checked(content):
    checker = Checker()
    checker.feed(content)
    checker.close()
    assert checker.open == []
    assert content.startswith("<!DOCTYPE html>")
    return checker


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder without a model: scores of made predictions, a figure, and settings."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    truth = rng.uniform(-2.5, 0.4, size=(3, 25))
    stars = np.tile(np.arange(25), (3, 1))
    base = truth + rng.normal(0, 0.2, truth.shape)
    rows = []
    for name, kind, scatter in (
        ("zero-shot-mlp2", "zero-shot", 0),
        ("lora4", "adapted", 1),
        ("gp", "baseline", 0.01),
    ):
        predicted = base if kind == "zero-shot" else truth + rng.normal(0, scatter, truth.shape)
        reference = base if kind == "adapted" else None
        scores = metrics.summarise(truth, predicted, fe_h=truth, stars=stars, reference=reference)
        rows += results.table_rows("a & <b>", name, scores, kind=kind)
    results.write_table(folder, rows)
    results.write_predictions(folder, {"id": ["s"], "fe_h": [0.1], "fe_h_predicted": [0.2]})
    plots.plot_sigma(folder / "sigma.png", rows)
    results.write_config(
        folder,
        {
            "adapt": {"seeds": 3, "train": 60, "validate": 10, "head": [{"rank": 4}]},
            "model": "mini",
            "refused": {"x": "featureless", "y": "too_fast"},
            "outside_training": {"a & <b>": {"z": "hotter_than_training"}},
            "made": {
                "command": "specjax adapt --out '<run>'",
                "date": "2026-01-01",
                "versions": {"jax": "0.1"},
            },
        },
    )
    adapter = folder / "adapters" / "t" / "lora4"
    adapter.mkdir(parents=True)
    (adapter / "config.json").write_text("{}")
    return folder


def test_the_page_is_valid_and_refers_to_nothing_else(run):
    checker = checked(make_page(run))
    assert not {"script", "link", "iframe", "object"} & set(checker.tags)
    addresses = [value for _, name, value in checker.attributes if name in ("src", "href", "srcset")]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in make_page(run)
    assert all(any(t == "img" and n == "alt" and v for t, n, v in checker.attributes) for _ in addresses)
    assert ("meta", "name", "viewport") in checker.attributes


def test_the_page_shows_the_scores_and_how_they_were_made(run):
    text = "\n".join(checked(make_page(run)).texts)
    for row in results.read_table(run):
        assert results.value_and_interval(row, "sigma") in text
    for part in (
        "a & <b>, [Fe/H] in dex: 25 test stars per split",
        "Adaptation to a & <b>: [Fe/H]",
        "specjax adapt --out '<run>'",
        "jax 0.1",
        "adapters/t/lora4",
    ):
        assert part in text
    assert "3 random splits of the labelled stars, each with 60 training and 10 validation stars" in text


def test_the_sizes_of_splits_are_those_of_the_target(run, tmp_path):
    results.write_table(tmp_path, results.read_table(run))
    label = results.read_table(run)[0].get("label", "")
    sizes = [
        {"target": name, "label": label, "train": 7 + k, "validate": 2}
        for k, name in enumerate(("x", "a & <b>"))
    ]
    results.write_config(tmp_path, {"adapt": {"train": 60, "validate": 10}, "splits": sizes})
    text = "\n".join(checked(make_page(tmp_path)).texts)
    assert "8 training, 2 validation, 25 test stars per split" in text
    assert "each with 60" not in text


def test_the_terms_of_the_tables_are_explained(run):
    checker = checked(make_page(run))
    text = "\n".join(checker.texts)
    for part in (
        "What the terms mean",
        "low-rank factors in the label head MLP2",
        "robust scatter σ",
        "MLP1 or MLP2",
    ):
        assert part in text, part
    for part in ("label head MLP1, which", "CRPS", "signal-to-noise", "a+b"):  # not in these tables
        assert part not in text, part
    assert checker.tags.count("dt") == checker.tags.count("dd") > 5


def test_terms_are_those_of_the_rows():
    rows = [{"configuration": name} for name in ("lora1+lora3", "lora1+lora3-fused", "gp-joint")]
    calibration = [{"subset": "all"}, {"subset": "snr<10"}]
    found = terms(rows, calibration)
    assert {"lora1", "lora3", "a+b", "-mean, -fused", "gp-joint", "CRPS", "S/N"} <= set(found)
    assert not {"lora2", "lora4", "gp-target", "zero-shot-mlp1, -mlp2"} & set(found)
    assert "model grid" in found["S/N"]


def test_the_page_warns_of_what_matters(run):
    text = "\n".join(checked(make_page(run)).texts)
    for part in (
        "1 featureless, 1 too_fast",
        "outside the model's training range: 1 hotter_than_training",
        "lora4 is worse than the model as it is",
        "is that of gp, a baseline",
        "only 25 test stars per split",
        "too few to score each split",
    ):
        assert part in text, part


def test_calibration_is_shown_if_the_run_has_it(run, tmp_path):
    assert "Calibration" not in make_page(run)
    row = {"target": "t", "configuration": "lora4", "subset": "all", "n_stars": 40, "crps": 0.1}
    for level, share in ((68, 0.5), (95, 0.9)):
        row |= {
            f"coverage{level}": share,
            f"coverage{level}_lo": share - 0.05,
            f"coverage{level}_hi": share + 0.05,
        }
    path = run / "calibration.json"
    try:
        path.write_text(json.dumps([{**row, "width68": 0.2, "width95": None}]))
        text = "\n".join(checked(make_page(run)).texts)
        path.write_text("[3]")
        with pytest.raises(DataError, match=r"calibration\.json is not a table"):
            make_page(run)
    finally:
        path.unlink()
    assert "50% [45, 55]" in text
    assert "the 68% intervals contain 50% [45, 55] of the test labels" in text


def test_an_old_run_has_fewer_sections(run, tmp_path):
    results.write_table(tmp_path, results.read_table(run))
    content = make_page(tmp_path)
    checked(content)
    assert "were not recorded" in content
    assert "<img" not in content


def test_the_command_writes_the_page(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8") == make_page(run)
    (run / "report.html").unlink()


@pytest.mark.parametrize("content", ["[]", '[{"a": 1}]', "3"])
def test_another_folder_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="is not the folder of a run"):
        write_page(tmp_path / "none")
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(DataError, match="not"):
        write_page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_rows_are_short_in_a_notebook(run):
    rows = results.read_table(run)
    assert repr(rows) == "<Rows: 9 scores of 3 configurations on 1 targets>"
    html = rows._repr_html_()
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert html.count("<tr>") == 4
    assert "a &amp; &lt;b&gt;" in html


def test_losses_are_told_as_certain_as_they_are(run):
    (row,) = (r for r in results.read_table(run) if (r["configuration"], r["subset"]) == ("lora4", "all"))
    ends = {"sigma_gain": -0.02, "sigma_gain_lo": -0.05}
    (line,) = losses([{**row, **ends, "sigma_gain_hi": -0.01}])
    assert "lora4 is worse than the model as it is" in line
    (line,) = losses([{**row, **ends, "sigma_gain_hi": 0.01, "n_stars": 1}])
    assert "lora4 may be worse than the model as it is" in line
    assert "with 1 test star per split" in line
    assert losses([{**row, "sigma_gain": 0.01, "sigma_gain_lo": -0.05, "sigma_gain_hi": 0.04}]) == []


def test_doubts_about_the_labels_are_warnings(run):
    config = json.loads((run / "config.json").read_text())
    results.write_config(run, {**config, "doubts": ["t: labels and predictions differ"]})
    assert "t: labels and predictions differ." in checked(make_page(run)).texts
