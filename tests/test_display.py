"""What a notebook or a prompt shows of an object is short, and holds no data."""

from xml.etree import ElementTree

import numpy as np
import pytest

from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import draw_splits
from specjax.display import card
from tests import synthetic


def result():
    return AdaptationResult(
        configuration=Configuration.parse("lora4"),
        predictions=np.random.default_rng(0).normal(size=(3, 40)),
        unseen=np.zeros((3, 40)),
        adapters={"mlp2": np.ones((3, 1000))},
        chosen={"tower": np.zeros(3), "head": np.ones(3), "step": np.array([10.0, 20.0, 60.0])},
    )


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (synthetic.foundation, ("Foundation", "lamost", "parameters", "fe_h")),
        (synthetic.target, ("Target 'tilted'", "with fe_h")),
        (lambda: draw_splits(40, seeds=3, train=20, validate=4), ("3 seeds: 20 training, 4 val", "16 test")),
        (result, ("AdaptationResult 'lora4'", "3 seeds, 40 labelled stars")),
    ],
)
def test_representations_are_one_short_line(make, parts):
    text = repr(make())
    assert "\n" not in text
    assert len(text) < 200
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (synthetic.foundation, ("parameters", "of lamost", "fe_h", "float32")),
        (result, ("lora4", "<td>40</td>", "selected step, median</th><td>20")),
    ],
)
def test_notebooks_show_a_short_table(make, parts):
    html = make()._repr_html_()
    assert ElementTree.fromstring(html).tag == "table"  # well-formed
    assert len(html) < 2000
    for part in parts:
        assert part in html


def test_the_counts_of_a_model_add_up():
    model = synthetic.foundation()
    cells = [cell.text for cell in ElementTree.fromstring(model._repr_html_()).iter("td")]
    heads = [cell.text for cell in ElementTree.fromstring(model._repr_html_()).iter("th")]
    rows = dict(zip(heads, cells, strict=True))
    counts = [int(value.replace(",", "")) for name, value in rows.items() if name.startswith("of ")]
    assert sum(counts) == int(rows["parameters"].replace(",", ""))


def test_texts_cannot_be_markup():
    html = card("<script>", {"a<b": "&", "none": None, "empty": "", "zero": 0})
    assert "<script>" not in html
    assert [cell.text for cell in ElementTree.fromstring(html).iter("td")] == ["&", "0"]
