"""Plots of experiments: legends cover no data, and no value is lost beyond the axes."""

import pytest
from matplotlib.lines import Line2D

from experiments.suite import figures
from specjax.report import style


def row(name, sigma, labels=5, kind="adapted"):
    ends = {"sigma_lo": sigma - 0.1, "sigma_hi": sigma + 0.1}
    return {"name": name, "kind": kind, "labels": labels, "sigma": sigma, **ends}


@pytest.fixture
def figure():
    with style.paper_figure(style.COLUMN, 3.0) as made:
        yield made


def test_the_legend_lies_below_all_axes_and_names_each_line_once(figure):
    lines = {name: [row(name, 0.2, count) for count in (5, 50)] for name in ("lora2", "mlp-lora")}
    for axis in figure.subplots(2, 1):
        figures.draw_lines(axis, lines, "labels", dashed=("mlp-lora",))
    figures.legend_below(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["lora2", "mlp-lora"]
    assert legend.get_window_extent().y1 <= min(axis.get_tightbbox().y0 for axis in figure.axes)


def test_a_line_looks_the_same_where_others_are_missing(figure):
    lines = {name: [row(name, 0.2)] for name in ("lora4", "untold", "gp-joint")}
    looks = []
    for axis, shown in zip(figure.subplots(2, 1), (lines, {**lines, "lora4": []}), strict=True):
        figures.draw_lines(axis, shown, "labels")
        container = axis.containers[-1]
        looks.append((len(axis.containers), container[0].get_color(), container[0].get_marker()))
    assert looks[0][0] == looks[1][0] + 1
    assert looks[0][1:] == looks[1][1:]


def test_values_beyond_the_axis_are_arrows_with_the_number(figure):
    axis = figure.subplots()
    rows = [row("zero-shot-mlp1", -5.9, kind="zero-shot"), row("lora2", 0.4)]
    figures.draw_bars(axis, rows, ["a", "b"], lowest=-2.5)
    assert axis.get_xlim()[0] == -2.5
    assert [text.get_text() for text in axis.texts] == ["-5.9"]
    (arrow,) = [line for line in axis.findobj(Line2D) if line.get_marker() == "<"]
    assert (arrow.get_xdata()[0], arrow.get_ydata()[0]) == (-2.5, 0)
    assert arrow.get_color() == style.COLOURS["zero-shot-mlp1"]


def test_an_axis_that_holds_all_values_is_left_alone(figure):
    axis = figure.subplots()
    figures.draw_bars(axis, [row("lora2", 0.4)], ["a"], lowest=-2.5)
    assert axis.get_xlim()[0] > -2.5
    assert not axis.texts
