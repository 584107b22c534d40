"""The two figures of a run: predictions against the literature, and the scatter of every configuration.

Both take plain NumPy structures and write a PNG. Colours are those of Okabe and Ito, which people with any
colour vision can tell apart; baselines, zero-shot and adapted rows differ in their marks too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from specjax.atomic import atomic_file
from specjax.report.metrics import r2, robust_sigma
from specjax.report.results import configuration_kind
from specjax.typing import AnyArray, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#222222"
COLOURS = {"baseline": INK, "zero-shot": BLUE, "adapted": VERMILION}
MARKS = {
    "baseline": ("s", GREY, GREY),
    "zero-shot": ("o", "white", BLUE),
    "adapted": ("o", VERMILION, VERMILION),
}
NAMES = {"baseline": "no foundation model", "zero-shot": "zero-shot", "adapted": "adapted"}


@dataclass(frozen=True, kw_only=True)
class StarPredictions:
    """One configuration's predictions by star, all (n,) in the label's unit.

    ``spread`` is the standard deviation over the seeds in which a star was tested, 0 if it was tested once.
    """

    truth: FloatArray
    predicted: FloatArray
    spread: FloatArray


def per_star(stars: ArrayLike, truth: ArrayLike, predicted: ArrayLike) -> StarPredictions:
    """Average the test predictions of each star over seeds; all three arrays have one shape, (seeds, n)."""
    _, first, index = np.unique(np.ravel(np.asarray(stars)), return_index=True, return_inverse=True)
    p, count = np.ravel(np.asarray(predicted, dtype=np.float64)), np.bincount(index)
    mean = np.bincount(index, p) / count
    variance = np.bincount(index, (p - mean[index]) ** 2) / np.maximum(count - 1, 1)
    chosen = np.ravel(np.asarray(truth, dtype=np.float64))[first]
    return StarPredictions(truth=chosen, predicted=mean, spread=np.sqrt(variance))


def plot_predictions(
    path: str | Path,
    panels: Mapping[str, StarPredictions],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    title: str = "",
    label: str = "[Fe/H]",
    unit: str = "dex",
) -> Path:
    """Draw predicted against literature labels, one panel a configuration, with residuals below each.

    All panels share their axes, so that they compare at a glance. Each star is one point, the mean of its
    test predictions; the bar is their spread over seeds. What lies beyond the axes is an arrow at their edge.

    Args:
        path: the PNG to write.
        panels: `StarPredictions` by configuration, all of one target.
        rows: that target's rows of table.json, whose scores are written into the panels. Without a row the
            scores of the drawn means are, which are better than those of single seeds, and say so.
        title: above the figure.
        label: what is predicted, for the axes.
        unit: its unit.
    """
    columns = min(3, len(panels))
    blocks = -(-len(panels) // columns)
    figure = _figure(3.5 * columns + 0.7, 4.5 * blocks + 0.5)
    grid = figure.subplots(2 * blocks, columns, sharex=True, squeeze=False, height_ratios=[3, 1.3] * blocks)
    limits, reach = _limits(panels.values())
    scores = {row["configuration"]: row for row in rows if row["subset"] == "all"}
    for k, (name, stars) in enumerate(panels.items()):
        top, bottom = (grid[2 * (k // columns) + i, k % columns] for i in (0, 1))
        colour = COLOURS[configuration_kind(name)]
        _draw_against(top, stars, limits, colour)
        _draw_residuals(bottom, stars, reach, colour)
        top.text(0.04, 0.95, _scores(stars, scores.get(name)), transform=top.transAxes, va="top", fontsize=9)
        top.set_title(name, fontsize=11, color=colour, fontweight="bold")
        bottom.tick_params(labelbottom=True)
        bottom.set_xlabel(f"literature {label} ({unit})")
        for axis, text in ((top, f"predicted {label} ({unit})"), (bottom, f"residual ({unit})")):
            axis.set_ylabel(text if k % columns == 0 else "")
            axis.tick_params(labelleft=k % columns == 0)
    for k in range(len(panels), blocks * columns):
        for i in (0, 1):
            grid[2 * (k // columns) + i, k % columns].remove()
    figure.align_ylabels()
    return _save(figure, path, title)


def plot_sigma(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    subset: str = "all",
    unit: str = "dex",
    floor: Mapping[str, float] | None = None,
    title: str = "",
) -> Path:
    """Draw the scatter of every configuration with its standard error, one panel a target; left is better.

    Args:
        path: the PNG to write.
        rows: rows of table.json.
        subset: which subset's rows to draw.
        unit: the label's unit.
        floor: by target, the scatter between the two surveys' own labels, drawn as a line.
        title: above the figure.
    """
    chosen = [row for row in rows if row["subset"] == subset]
    targets = list(dict.fromkeys(row["target"] for row in chosen))
    names = list(dict.fromkeys(row["configuration"] for row in chosen))
    figure = _figure(4.8 * len(targets) + 1.8, 0.34 * len(names) + 1.9)
    axes = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for target, axis in zip(targets, axes, strict=True):
        _draw_sigmas(axis, [r for r in chosen if r["target"] == target], names, (floor or {}).get(target))
        axis.set_title(target, fontsize=12, fontweight="bold")
        axis.set_xlabel(f"robust scatter σ ({unit}), lower is better")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    handles = {text: h for axis in axes for h, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [text for text in (*NAMES.values(), FLOOR) if text in handles]
    figure.legend(
        [handles[text] for text in order], order, loc="outside lower center", ncols=len(order), frameon=False
    )
    return _save(figure, path, title)


FLOOR = "scatter between the surveys' own labels"


def _draw_against(axis: "Axes", stars: StarPredictions, limits: tuple[float, float], colour: str) -> None:
    """Predicted against literature, with the line of equality."""
    axis.plot(limits, limits, color=INK, lw=1, ls="--", zorder=1)
    inside = (stars.predicted > limits[0]) & (stars.predicted < limits[1])
    axis.errorbar(
        stars.truth[inside],
        stars.predicted[inside],
        yerr=stars.spread[inside],
        fmt="o",
        ms=4,
        color=colour,
        alpha=0.65,
        mew=0,
        elinewidth=0.7,
    )
    _draw_beyond(axis, stars.truth, stars.predicted, limits, colour)
    axis.set(xlim=limits, ylim=limits)


def _draw_residuals(axis: "Axes", stars: StarPredictions, reach: float, colour: str) -> None:
    """Predicted minus literature, around zero."""
    residual = stars.predicted - stars.truth
    inside = np.abs(residual) < reach
    axis.axhline(0, color=INK, lw=1, ls="--", zorder=1)
    axis.plot(stars.truth[inside], residual[inside], "o", ms=3, color=colour, alpha=0.65, mew=0)
    _draw_beyond(axis, stars.truth, residual, (-reach, reach), colour)
    axis.set_ylim(-reach, reach)


def _draw_beyond(axis: "Axes", x: AnyArray, y: AnyArray, limits: tuple[float, float], colour: str) -> None:
    """Arrows at the edges for the points that lie beyond them."""
    inset = 0.05 * (limits[1] - limits[0])
    for beyond, mark, place in (
        (y >= limits[1], "^", limits[1] - inset),
        (y <= limits[0], "v", limits[0] + inset),
    ):
        axis.plot(x[beyond], np.full(beyond.sum(), place), mark, ms=5, color=colour, mew=0)


def _scores(stars: StarPredictions, row: Mapping[str, Any] | None) -> str:
    """The lines in a panel's corner."""
    n = len(stars.truth)
    if row is None:
        sigma, score = robust_sigma(stars.predicted - stars.truth), r2(stars.truth, stars.predicted)
        return f"of the means shown:\nσ = {sigma:.3f}\nR² = {score:.3f}\n{n} stars"
    error = row["sigma_err"]
    sigma_text = f"σ = {row['sigma']:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")
    return f"{sigma_text}\nR² = {row['r2']:.3f}\n{n} stars"


def _draw_sigmas(
    axis: "Axes", rows: Sequence[Mapping[str, Any]], names: Sequence[str], floor: float | None
) -> None:
    """Points with error bars and the value written beside each, baselines grey."""
    for row in rows:
        sigma, error = float(row["sigma"]), float(np.nan_to_num(row["sigma_err"]))
        if not np.isfinite(sigma):
            continue
        kind, place = row.get("kind", "baseline"), names.index(row["configuration"])
        mark, face, edge = MARKS[kind]
        axis.errorbar(
            [sigma],
            [place],
            xerr=[error],
            fmt=mark,
            label=NAMES[kind],
            color=edge,
            mfc=face,
            mec=edge,
            mew=1.5,
            ms=5.5,
            elinewidth=1.8,
            capsize=4,
            zorder=3,
        )
        axis.annotate(
            f"{sigma:.3f} ± {error:.3f}" if error else f"{sigma:.3f}",
            (sigma + error, place),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK if kind != "baseline" else "#666666",
        )
    ends = [r["sigma"] + s * np.nan_to_num(r["sigma_err"]) for r in rows for s in (-1, 1)]
    ends = [end for end in [*ends, floor or np.nan] if np.isfinite(end)] or [0.0, 1.0]
    if floor is not None:
        axis.axvline(floor, color=GREEN, ls="--", lw=1.4, label=FLOOR, zorder=1)
    width = max(ends) - min(ends) or max(ends)
    axis.set_xlim(min(ends) - 0.07 * width, max(ends) + 0.38 * width)  # room for the numbers on the right
    axis.grid(color="#E6E6E6", lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _limits(panels: Iterable[StarPredictions]) -> tuple[tuple[float, float], float]:
    """Shared limits: the literature labels with a margin, and residuals to four times the largest scatter."""
    panels = list(panels)
    truth = np.concatenate([p.truth for p in panels])
    low, high = float(truth.min()), float(truth.max())
    scatter = max(float(robust_sigma(p.predicted - p.truth)) for p in panels)
    margin = max(0.05 * (high - low), 1.5 * scatter) or 0.5
    return (low - margin, high + margin), 4.0 * scatter or 1.0


def _figure(width: float, height: float) -> "Figure":
    """A figure without pyplot's global state, which works in threads and without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: str | Path, title: str) -> Path:
    """Write the PNG atomically."""
    if title:
        figure.suptitle(title, fontsize=13)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)
