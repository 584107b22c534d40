"""The calibration plot of a run: coverage of the intervals by subset, and their widths."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specjax.report import plots, style
from specjax.report.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SNR = "S/N: median per pixel of the model grid"
PANELS = (("coverage68", 0.68, "in the 68% interval"), ("coverage95", 0.95, "in the 95% interval"))


def plot_calibration(path: str | Path, rows: Sequence[Row], *, title: str = "", unit: str = "dex") -> Path:
    """Plot the fraction of test labels in their intervals, and the mean half width, by subset.

    Bars are 95% intervals over stars, dashed lines the nominal fractions. The legend says what the S/N is
    if stars are divided by it.

    Args:
        path: PNG to write; a PDF is written beside it.
        rows: rows of calibration.json, of one target.
        title: title of the figure.
        unit: unit of the label.
    """
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    own = [[row for row in rows if row["configuration"] == name] for name in names]
    colours = list(style.colours(names).values())
    height = 0.17 * len(subsets) * max(1.0, 0.5 * len(names)) + 1.0
    with style.paper_figure(style.PAGE, height) as figure:
        axes = figure.subplots(1, 3, sharey=True)
        for axis, (column, level, text) in zip(axes, PANELS, strict=False):
            axis.axvline(level, color=style.INK, ls="--", lw=0.7, zorder=1)
            axis.set_xlabel(f"fraction {text}")
            axis.locator_params(axis="x", nbins=5)
            for place, part in enumerate(own):
                _draw(axis, part, subsets, column, place, colours)
        for place, part in enumerate(own):
            _draw_widths(axes[2], part, subsets, place, colours)
        axes[2].set_xlabel(plots.with_unit("mean half width of 68%", unit))
        axes[2].set_xlim(0, 0.55 * max(row["width68"] for row in rows) or 1.0)
        axes[0].set_yticks(range(len(subsets)), [_with_count(name, rows) for name in subsets])
        axes[0].set_ylim(len(subsets) - 0.4, -0.6)
        entries = axes[0].get_legend_handles_labels()
        about = SNR if any("snr" in name for name in subsets) else None
        figure.legend(*entries, loc="outside lower center", ncols=min(4, len(names)), title=about)
        return style.save_figure(figure, path, title=title)[0]


def _with_count(subset: str, rows: Sequence[Row]) -> str:
    """Return a subset's text with its number of stars; without one that differs between configurations."""
    counts = {row["n_stars"] for row in rows if row["subset"] == subset}
    text = subset.replace("snr", "S/N")
    return f"{text} ({counts.pop()} stars)" if len(counts) == 1 else text


def _place(subset: int, place: int, count: int) -> float:
    """Return the height of a marker: those of all configurations are spread about the line of the subset."""
    return subset + 0.6 * ((place + 0.5) / count - 0.5)


def _draw(
    axis: "Axes", rows: Sequence[Row], subsets: Sequence[str], column: str, place: int, colours: Sequence[str]
) -> None:
    """Coverage of one configuration with its interval over stars."""
    values = np.array([[row[f"{column}{end}"] for end in ("", "_lo", "_hi")] for row in rows]).T
    heights = [_place(subsets.index(row["subset"]), place, len(colours)) for row in rows]
    bars = np.clip(np.stack([values[0] - values[1], values[2] - values[0]]), 0, None)
    axis.errorbar(
        values[0], heights, xerr=bars, fmt=_marker(place), ms=3, capsize=2, lw=0.9, color=colours[place],
        label=rows[0]["configuration"],
    )  # fmt: skip
    axis.grid(color=style.LIGHT)
    axis.set_axisbelow(True)


def _draw_widths(
    axis: "Axes", rows: Sequence[Row], subsets: Sequence[str], place: int, colours: Sequence[str]
) -> None:
    heights = [_place(subsets.index(row["subset"]), place, len(colours)) for row in rows]
    widths = [0.5 * row["width68"] for row in rows]
    axis.plot(widths, heights, _marker(place), ms=3, color=colours[place])
    axis.grid(color=style.LIGHT)
    axis.set_axisbelow(True)


def _marker(place: int) -> str:
    return style.MARKERS[place % len(style.MARKERS)]
