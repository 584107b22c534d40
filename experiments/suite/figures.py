"""Plots of experiments, in the style of all figures: one column wide, as PNG and PDF."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.suite.frame import Draw, Row
from specjax.report import style
from specjax.report.plots import STYLES, kind_handles
from specjax.report.style import INK, LIGHT, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = style.COLUMN
_BESIDE = 0.03  # inches between the markers of lines


def save(path: Path, draw: Draw) -> None:
    """Write a figure of one column as `path`.png and `path`.pdf."""
    with style.paper_figure(style.COLUMN, 2.8) as figure:
        draw(figure)
        style.save_figure(figure, path)


def tall(figure: "Figure", lines: int) -> "Axes":
    """Make room for that many lines of `draw_bars`; returns the axes."""
    figure.set_size_inches(WIDTH, 0.9 + 0.16 * lines)
    return figure.subplots()


def draw_bars(
    axis: "Axes",
    rows: Sequence[Row],
    names: Sequence[str],
    value: str = "sigma",
    lowest: float = -math.inf,
) -> None:
    """Draw values with intervals as a column of markers, one line per row, the first at the top.

    Args:
        axis: to draw on.
        rows: each with `value` and its interval, "kind", which sets the marker, and "name", which sets the
            colour where it begins with that of a configuration or baseline.
        names: of the lines.
        value: key of the values.
        lowest: left end of the axis if values are below; these are drawn as arrows with the number.
    """
    for place, row in enumerate(rows):
        look = STYLES[row["kind"]].drawn(style.colour_of(str(row.get("name", ""))) or INK)
        axis.errorbar([row[value]], [place], xerr=_reach([row], value), ms=3.5, elinewidth=1, **look)
    if min((row[value] for row in rows), default=math.inf) < lowest:
        axis.set_xlim(left=lowest)
    for place, row in enumerate(rows):
        if row[value] < lowest:
            draw_beyond(axis, row[value], place, style.colour_of(str(row.get("name", ""))) or INK)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("σ (dex)" if value == "sigma" else value)
    axis.grid(axis="x", color=LIGHT)
    axis.set_axisbelow(True)
    handles = kind_handles(row["kind"] for row in rows)
    axis.figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)


def draw_lines(
    axis: "Axes",
    lines: Mapping[str, Sequence[Row]],
    x: str,
    value: str = "sigma",
    *,
    dashed: Sequence[str] = (),
) -> None:
    """Draw values with intervals against a number of the rows, one line per name.

    Lines are drawn a little beside each other, so that no interval covers another.

    Args:
        axis: to draw on.
        lines: rows by name; a name without rows keeps its marker and colour for other axes.
        x: key of the horizontal axis.
        value: key of the values.
        dashed: names of lines to draw dashed, such as baselines.
    """
    from matplotlib.transforms import ScaledTranslation

    colours = style.colours(lines)
    for place, (name, rows) in enumerate(lines.items()):
        if not rows:
            continue
        beside = _BESIDE * (place - (len(lines) - 1) / 2)
        move = ScaledTranslation(beside, 0, axis.figure.dpi_scale_trans)
        ordered = sorted(rows, key=lambda row: float(row[x]))
        drawn = axis.errorbar(
            [row[x] for row in ordered],
            [row[value] for row in ordered],
            yerr=_reach(ordered, value),
            fmt=MARKERS[place % len(MARKERS)],
            ls="--" if name in dashed else "-",
            color=colours[name],
            ms=3,
            lw=1,
            elinewidth=0.7,
            label=name,
        )
        for artist in drawn.get_children():  # only now, because the limits of the axes come from the data
            artist.set_transform(axis.transData + move)
    axis.margins(x=0.08)  # for the outermost lines


def legend_below(figure: "Figure", columns: int = 3) -> None:
    """Put one legend of all axes below them, where it covers no data."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def draw_beyond(axis: "Axes", value: float, place: float, colour: str) -> None:
    """Draw an arrow and the value at the left edge of an axis for a marker that lies beyond it."""
    edge = axis.get_xlim()[0]
    axis.plot([edge], [place], "<", color=colour, ms=4, mew=0, clip_on=False, zorder=4)
    axis.annotate(
        f"{value:.1f}", (edge, place), xytext=(5, 0), textcoords="offset points", va="center_baseline",
        fontsize=style.SMALL, color=INK,
    )  # fmt: skip


def _reach(rows: Sequence[Row], value: str) -> Any:
    """Return the lengths (2, n) of error bars, 0 where there is no interval."""
    reach = []
    for end, sign in (("_lo", -1), ("_hi", 1)):
        lengths = [sign * (row.get(f"{value}{end}", math.nan) - row[value]) for row in rows]
        reach.append([length if math.isfinite(length) else 0.0 for length in lengths])
    return np.maximum(np.array(reach), 0.0)
