"""The figures of a run: predicted against literature labels, and the scatter of all configurations.

Each is one or two columns of a journal wide (see `style`), and written as PNG and PDF. Colours are those of
the configurations (`style.colours`); baselines, zero-shot and adapted configurations differ in their markers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.report import style
from specjax.report.metrics import r2, robust_sigma
from specjax.report.results import Kind, value_and_interval
from specjax.report.style import COLUMN, CURVES, INK, LIGHT, PAGE, SMALL
from specjax.typing import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_RASTER = 3000  # points, above which a PDF holds an image of them
LABEL_SCATTER = "scatter between literature labels"
BARS = "68% intervals, means over seeds"


@dataclass(frozen=True, kw_only=True)
class Style:
    """Legend and marker of one kind of configuration."""

    legend: str
    marker: str
    is_open: bool = False
    """The marker is a contour."""
    values: str = INK
    """Colour of the numbers beside the markers."""

    def drawn(self, colour: str) -> dict[str, Any]:
        """Return the options of a marker and its error bar in a colour."""
        face = "white" if self.is_open else colour
        return {"marker": self.marker, "color": colour, "mec": colour, "mfc": face, "ls": ""}


STYLES: Mapping[Kind, Style] = {
    "baseline": Style(legend="no foundation model", marker="s", values="#666666"),
    "zero-shot": Style(legend="zero-shot", marker="o", is_open=True),
    "adapted": Style(legend="adapted", marker="o"),
}


def kind_handles(kinds: Iterable[Kind]) -> dict[str, "Line2D"]:
    """Return the legend of the markers of these kinds, entries by text, in the order of `STYLES`."""
    from matplotlib.lines import Line2D

    shown = set(kinds)
    return {
        look.legend: Line2D([], [], ms=3.5, **look.drawn(INK))
        for kind, look in STYLES.items()
        if kind in shown
    }


@dataclass(frozen=True, kw_only=True)
class StarPredictions:
    """Predictions of one configuration by star.

    Attributes:
        truth: (n,) literature labels.
        predicted: (n,) predictions, means over the seeds that tested a star.
        below: (n,) lengths of the lower halves of their intervals, means over those seeds; NaN without any.
        above: (n,) lengths of the upper halves.
    """

    truth: FloatArray
    predicted: FloatArray
    below: FloatArray
    above: FloatArray

    @property
    def residual(self) -> FloatArray:
        """Predicted minus literature labels (n,)."""
        return self.predicted - self.truth


def per_star(
    stars: ArrayLike,
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    lo: ArrayLike | None = None,
    hi: ArrayLike | None = None,
) -> StarPredictions:
    """Average test predictions and the lengths of their intervals over seeds, star by star.

    Args:
        stars: (seeds, n) identifiers of the test stars.
        truth: (seeds, n) their literature labels.
        predicted: (seeds, n) their predictions.
        lo: (seeds, n) lower ends of the intervals of the predictions, NaN where there are none.
        hi: (seeds, n) upper ends.
    """
    _, first, index = np.unique(np.ravel(np.asarray(stars)), return_index=True, return_inverse=True)
    count = np.bincount(index)
    labels, values, lower, upper = (
        np.full(index.shape, np.nan) if each is None else np.ravel(np.asarray(each, dtype=np.float64))
        for each in (truth, predicted, lo, hi)
    )
    predicted, below, above = (
        np.bincount(index, each) / count for each in (values, values - lower, upper - values)
    )
    return StarPredictions(truth=labels[first], predicted=predicted, below=below, above=above)


def plot_predictions(
    path: str | Path,
    panels: Mapping[str, StarPredictions],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    title: str = "",
    label: str = "[Fe/H]",
    unit: str = "dex",
) -> Path:
    """Plot predicted against literature labels, one panel per configuration, each above its residuals.

    All panels have the same axes. Points are means of a star's test predictions, bars their 68% intervals, as
    the legend says. Stars outside the axes are drawn as arrows at their edge.

    Args:
        path: PNG to write; a PDF is written beside it.
        panels: predictions by configuration, all for one target.
        rows: the target's rows of table.json, whose scores are written into the panels. A panel without a row
            shows the scores of the plotted means, which are better than those of single seeds.
        title: title of the figure.
        label: name of the label on the axes.
        unit: its unit.
    """
    columns = min(3, len(panels))
    blocks = -(-len(panels) // columns)
    width = COLUMN if columns == 1 else PAGE
    with style.paper_figure(width, blocks * (1.25 * width / columns + 0.4) + 0.25) as figure:
        grid = figure.subplots(
            2 * blocks, columns, sharex=True, squeeze=False, height_ratios=[3, 1.3] * blocks
        )
        pairs = grid.reshape(blocks, 2, columns).swapaxes(1, 2).reshape(-1, 2)
        limits, reach = _limits(panels.values())
        scores = {row["configuration"]: row for row in rows if row["subset"] == "all"}
        colours = style.colours(panels)
        for k, (name, stars) in enumerate(panels.items()):
            top, bottom = pairs[k]
            _draw_predictions(top, stars, limits, colours[name])
            _draw_residuals(bottom, stars, reach, colours[name])
            text = _scores(stars, scores.get(name))
            top.text(0.04, 0.96, text, transform=top.transAxes, va="top", fontsize=SMALL)
            top.set_title(name, fontweight="bold")
            bottom.tick_params(labelbottom=True)
            bottom.set_xlabel(with_unit(f"literature {label}", unit))
            for axis, text in ((top, f"predicted {label}"), (bottom, "residual")):
                axis.set_ylabel(with_unit(text, unit) if k % columns == 0 else "")
                axis.tick_params(labelleft=k % columns == 0)
        for axis in pairs[len(panels) :].ravel():
            axis.remove()
        if any(np.isfinite(stars.below).any() for stars in panels.values()):
            figure.legend([_bar()], [BARS], loc="outside lower center")
        figure.align_ylabels()
        return style.save_figure(figure, path, title=title)[0]


def plot_sigma(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    subset: str = "all",
    unit: str = "dex",
    label_scatter: Mapping[str, float] | None = None,
    title: str = "",
) -> Path:
    """Plot the robust scatter of all configurations with 95% intervals over stars, one panel per target.

    Args:
        path: PNG to write; a PDF is written beside it.
        rows: rows of table.json.
        subset: subset whose rows are plotted.
        unit: unit of the label.
        label_scatter: scatter between two sets of literature labels by target, drawn as a line.
        title: title of the figure.
    """
    rows = [row for row in rows if row["subset"] == subset]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    columns = min(2, len(targets))
    lines = -(-len(targets) // columns)
    height = lines * (0.165 * len(names) + 0.65) + 0.35
    with style.paper_figure(COLUMN if columns == 1 else PAGE, height) as figure:
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for target, axis in zip(targets, axes, strict=False):
            own = [row for row in rows if row["target"] == target]
            _draw_sigmas(axis, own, style.colours(names), (label_scatter or {}).get(target))
            axis.set_title(target, fontweight="bold")
            axis.set_xlabel(with_unit("robust scatter σ", unit))
        for axis in axes[len(targets) :]:
            axis.set_axis_off()
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        _add_legend(figure, axes, kind_handles(row["kind"] for row in rows), 2 * columns)
        return style.save_figure(figure, path, title=title)[0]


def plot_curves(
    path: str | Path, rows: Sequence[Mapping[str, Any]], *, unit: str = "dex", title: str = ""
) -> Path:
    """Plot the robust scatter of all stars against the number of training stars, one line per S/N.

    Bars are 95% intervals over stars, dashed lines the zero-shot scatter.

    Args:
        path: PNG to write; a PDF is written beside it.
        rows: rows of table.json with n_train, 0 for zero-shot, and snr.
        unit: unit of the label.
        title: title of the figure.
    """
    rows = [row for row in rows if row["subset"] == "all" and np.isfinite(row["sigma"])]
    levels = sorted({row["snr"] for row in rows})
    with style.paper_figure(COLUMN, 2.6) as figure:
        axis = figure.subplots()
        for place, snr in enumerate(levels):
            offset = 1.02 ** (place - 0.5 * (len(levels) - 1))  # so that bars do not overlap
            own = [row for row in rows if row["snr"] == snr]
            _draw_curve(axis, own, place, offset, f"S/N {snr:g}")
        ticks = sorted({row["n_train"] for row in rows if row["n_train"]})
        axis.set(xscale="log", xlabel="training stars", ylabel=with_unit("robust scatter σ", unit))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(title="dashed: zero-shot")
        return style.save_figure(figure, path, title=title)[0]


def _draw_curve(
    axis: "Axes", rows: Sequence[Mapping[str, Any]], place: int, offset: float, legend: str
) -> None:
    """Scatter against the number of training stars, times an offset, and the zero-shot scatter."""
    colour, marker = CURVES[place % len(CURVES)], style.MARKERS[place % len(style.MARKERS)]
    adapted = sorted((row for row in rows if row["n_train"]), key=lambda row: row["n_train"])
    stars = offset * np.array([row["n_train"] for row in adapted])
    sigma = np.array([row["sigma"] for row in adapted])
    bars = np.abs(np.array([_interval(row) for row in adapted]).reshape(-1, 2).T - sigma)
    axis.errorbar(stars, sigma, yerr=bars, fmt=f"{marker}-", color=colour, capsize=2, label=legend)
    for row in rows:
        if not row["n_train"]:
            axis.axhline(row["sigma"], color=colour, ls="--", lw=0.8)


def _bar() -> "Line2D":
    """Return the entry of the legend for error bars."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, ls="", marker="|", ms=7, mew=0.7)


def _draw_predictions(axis: "Axes", stars: StarPredictions, limits: tuple[float, float], colour: str) -> None:
    """Predicted against literature labels, with the line of equality."""
    axis.plot(limits, limits, color=INK, lw=0.7, ls="--", zorder=1)
    inside = (stars.predicted > limits[0]) & (stars.predicted < limits[1])
    x, y, below, above = (a[inside] for a in (stars.truth, stars.predicted, stars.below, stars.above))
    many = len(x) > _RASTER
    axis.plot(x, y, "o", ms=2.4, color=colour, alpha=0.65, mew=0, rasterized=many)
    known = np.isfinite(below) & np.isfinite(above)
    bars = axis.vlines(x[known], (y - below)[known], (y + above)[known], colour, lw=0.5, alpha=0.3)
    bars.set_rasterized(many)
    _draw_outside(axis, stars.truth, stars.predicted, limits, colour)
    axis.set(xlim=limits, ylim=limits)


def _draw_residuals(axis: "Axes", stars: StarPredictions, reach: float, colour: str) -> None:
    inside = np.abs(stars.residual) < reach
    axis.axhline(0, color=INK, lw=0.7, ls="--", zorder=1)
    axis.plot(
        stars.truth[inside], stars.residual[inside], "o", ms=2, color=colour, alpha=0.65, mew=0,
        rasterized=len(stars.truth) > _RASTER,
    )  # fmt: skip
    _draw_outside(axis, stars.truth, stars.residual, (-reach, reach), colour)
    axis.set_ylim(-reach, reach)


def _draw_outside(
    axis: "Axes", x: FloatArray, y: FloatArray, limits: tuple[float, float], colour: str
) -> None:
    """Arrows at the edges for points outside the limits."""
    inset = 0.05 * (limits[1] - limits[0])
    for outside, marker, place in (
        (y >= limits[1], "^", limits[1] - inset),
        (y <= limits[0], "v", limits[0] + inset),
    ):
        axis.plot(x[outside], np.full(outside.sum(), place), marker, ms=3.5, color=colour, mew=0)


def _scores(stars: StarPredictions, row: Mapping[str, Any] | None) -> str:
    """The text in the corner of a panel."""
    n = len(stars.truth)
    if row is None:
        sigma, score = robust_sigma(stars.residual), r2(stars.truth, stars.predicted)
        return f"for means over seeds:\nσ = {sigma:.3f}\nR² = {score:.3f}\n{n} stars"
    return f"σ = {value_and_interval(row, 'sigma')}\nR² = {row['r2']:.3f}\n{n} stars"


def _draw_sigmas(
    axis: "Axes", rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str], label_scatter: float | None
) -> None:
    """Scatter of one target's configurations, with the values as text beside the axis."""
    rows = [row for row in rows if np.isfinite(row["sigma"])]
    for row in rows:
        name = row["configuration"]
        _draw_sigma(axis, row, list(colours).index(name), colours[name])
    if label_scatter is not None:
        axis.axvline(label_scatter, color=INK, ls="--", lw=1, label=LABEL_SCATTER, zorder=1)
    ends = [end for row in rows for end in _interval(row)]
    ends = [*ends, label_scatter] if label_scatter else ends
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    width = high - low or high
    axis.set_xlim(low - 0.07 * width, high + 0.07 * width)
    axis.grid(color=LIGHT)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _draw_sigma(axis: "Axes", row: Mapping[str, Any], place: int, colour: str) -> None:
    sigma, look = row["sigma"], STYLES[row["kind"]]
    low, high = _interval(row)
    axis.errorbar(
        [sigma], [place], xerr=[[sigma - low], [high - sigma]], zorder=3, elinewidth=1.1, capsize=2,
        mew=0.9, ms=3.2, **look.drawn(colour),
    )  # fmt: skip
    axis.annotate(
        value_and_interval(row, "sigma"), (1.03, place), xycoords=("axes fraction", "data"),
        va="center", fontsize=SMALL, color=look.values, annotation_clip=False,
    )  # fmt: skip


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The ends of the interval of sigma, both equal to sigma if there is none."""
    low, high = row["sigma_lo"], row["sigma_hi"]
    return (low, high) if np.isfinite([low, high]).all() else (row["sigma"], row["sigma"])


def _add_legend(
    figure: "Figure", axes: Iterable["Axes"], handles: Mapping[str, "Line2D"], columns: int
) -> None:
    """One legend below all panels: of the markers, and of the line for the scatter between labels."""
    entries = dict(handles)
    for axis in axes:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(columns, len(entries))
    )


def with_unit(text: str, unit: str) -> str:
    """Return a text with the unit in parentheses, if there is one."""
    return f"{text} ({unit})" if unit else text


def _limits(panels: Iterable[StarPredictions]) -> tuple[tuple[float, float], float]:
    """Shared limits: literature labels with a margin; residuals up to four times the largest scatter."""
    panels = list(panels)
    truth = np.concatenate([p.truth for p in panels])
    low, high = float(truth.min()), float(truth.max())
    scatter = max(float(robust_sigma(p.residual)) for p in panels)
    margin = max(0.05 * (high - low), 1.5 * scatter) or 0.5
    return (low - margin, high + margin), 4.0 * scatter or 1.0
