"""Tables, as text and as Markdown, and plots of the results."""

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.comparison import COMPILED
from benchmarks.results import Section, Sections, rows_of
from benchmarks.targets import TARGETS, Target
from benchmarks.timing import OURS, DevicePeaks, Row
from specjax.report import style

_COLOURS = (*style.CURVES, style.SKY, style.WINE, style.OLIVE)
HEADINGS = {
    "a": "Embedding",
    "b": "LoRA steps",
    "c": "Whole LoRA4 runs on cached features",
    "d": "All six configurations",
    "e": "A step of full fine-tuning",
    "f": "New processes: compilation and the first result",
    "g": "Peak memory of single tasks, each in a new process",
    "h": "Prediction of a survey, against the compiled core alone",
    "i": "`specjax predict` against the number of spectra, each in a new process",
    "j": "`specjax adapt` against the number of seeds, each in a new process",
    "k": "Preprocessing and the host side",
}
COLUMNS = (
    "what", "side", "median s", "range s", "per second", "of peak", "of core", "ratio", "CPU s", "per CPU s",
    "first s", "memory", "note",
)  # fmt: skip
PANELS = {
    "embedding": ("Embedding", "number of spectra", "time (s)"),
    "lora1": ("LoRA1 step", "number of seeds", "time (s)"),
    "lora3": ("LoRA3 step", "number of seeds", "time (s)"),
    "lora4": ("LoRA4 run", "number of seeds", "time (s)"),
    "adapt": ("specjax adapt, whole process", "number of seeds", "time (s)"),
    "survey": ("specjax predict, whole process", "number of spectra", "time (s)"),
    "memory": ("specjax predict, whole process", "number of spectra", "peak memory (GiB)"),
}
"""Title and labels of the panels of the plot; "memory" shows the rows of "survey"."""


def cells(row: Row, side: str, peaks: DevicePeaks) -> dict[str, str]:
    """Return what is known of a side of a row by column, "" where nothing was measured."""
    ours, floor, times = side == OURS, row.floor(peaks), row.times.get(side, [])
    cpu = statistics.median(row.cpu[side]) if row.cpu.get(side) else math.nan
    return {
        "what": row.what if side == next(iter(_sides(row))) else "",
        "side": side,
        "median s": number(row.median(side)),
        "range s": f"{number(min(times))} to {number(max(times))}" if len(times) > 1 else "",
        "per second": f"{number(row.rate(side))} {row.unit}" if times else "",
        "of peak": "" if math.isnan(floor) else f"{floor / row.median(side):.0%}",
        "of core": _spread(row.of_core) if ours else "",
        "ratio": _spread(row.ratios(side)),
        "CPU s": number(cpu),
        "per CPU s": number(row.count / cpu if cpu else math.nan),
        "first s": number(row.first.get(side, math.nan)),
        "memory": f"{row.memory[side] / 2**30:.2f} GiB" if side in row.memory else "",
        "note": row.note if ours else "",
    }


def one_line(row: Row) -> str:
    """Format the medians of a row as a line of progress."""
    shown = [f"{side} {row.median(side):.3g} s" for side in row.times]
    return f"{row.section}  {row.what}: {', '.join(shown + [row.note] * bool(row.note))}"


def print_tables(sections: Sections) -> None:
    """Print the tables, as Markdown if the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        print(markdown(sections))
        return
    for letter, section in sorted(sections.items()):
        names, lines = table(section)
        shown = Table(title=f"{letter}. {HEADINGS[letter]}", title_justify="left")
        for name in names:
            shown.add_column(name, justify="left" if name in ("what", "side", "note") else "right")
        for line in lines:
            shown.add_row(*line)
        console.print(shown)
        console.print(describe(section), highlight=False)
    console.print(targets_markdown(sections), highlight=False)


def markdown(sections: Sections) -> str:
    """Return all tables as Markdown, with a heading for each section and the targets at the end."""
    parts = []
    for letter, section in sorted(sections.items()):
        parts += [f"### {letter}. {HEADINGS[letter]}", section_markdown(section)]
    return "\n\n".join([*parts, "### Targets", targets_markdown(sections)])


def section_markdown(section: Section) -> str:
    """Return the table of a section as Markdown, and where it was measured."""
    names, lines = table(section)
    left = ("what", "side", "note")
    rule = "|" + "".join("---|" if name in left else "---:|" for name in names)
    return "\n".join([_line(names), rule, *map(_line, lines), "", describe(section)])


def table(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns in which anything is known, and the lines."""
    all_cells = [cells(row, side, section.peaks) for row in section.rows for side in _sides(row)]
    names = [name for name in COLUMNS if any(line[name] for line in all_cells)]
    if {line["side"] for line in all_cells} == {OURS}:
        names.remove("side")
    return names, [[line[name] for name in names] for line in all_cells]


def targets_markdown(sections: Sections, targets: Iterable[Target] = TARGETS) -> str:
    """Return the table of targets; what was not measured stays blank."""
    lines = ["| what | target | measured | |", "|---|---:|---:|---|"]
    for target in targets:
        value = target.measure(sections)
        known = not math.isnan(value)
        measured = target.format(value) if known else ""
        verdict = ("met" if target.is_met(value) else "missed") if known else ""
        lines.append(_line([target.what, target.wanted(), measured, verdict]))
    return "\n".join(lines)


def describe(section: Section) -> str:
    """Return where and when a section was measured, as a paragraph."""
    about, peaks = section.environment, section.peaks
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = f"{about['device']}, {about['cores']} cores, {about['date']}; matrix products in {about['dtype']}"
    if "load" in about:
        text += f"; load of the machine before {about['load'][0]:.1f}, after {about['load'][1]:.1f}"
    text += (
        f"; {versions}. Measured peaks: {peaks.flops / 1e9:,.0f} GFLOP/s, {peaks.bandwidth / 1e9:,.0f} GB/s."
    )
    return f"{text} {about['remark']}" if about.get("remark") else text


def plot(path: Path, sections: Sections, device: str) -> None:
    """Plot time and memory against numbers, with lines of proportional time for comparison.

    Args:
        path: PNG to write; not written if no row belongs to a panel.
        sections: their rows name the panel and the curve that they belong to.
        device: title of the figure.
    """
    drawn = {panel: found for panel in PANELS if (found := curves(rows_of(sections), panel))}
    if not drawn:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(len(drawn), 2)
    lines = -(-len(drawn) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(7.5 * columns, 4.5 * lines), layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes.flat, drawn, strict=False):
        _draw(axis, panel, drawn[panel])
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    figure.suptitle(device)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def curves(rows: Sequence[Row], panel: str) -> dict[str, list[tuple[float, float]]]:
    """Return the points (number, seconds or GiB) of each curve of a panel by its name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.panel != ("survey" if panel == "memory" else panel):
            continue
        for side in row.memory if panel == "memory" else row.times:
            value = row.memory[side] / 2**30 if panel == "memory" else row.median(side)
            found.setdefault(row.curve if row.curve and side == OURS else side, []).append((row.count, value))
    return {name: sorted(points) for name, points in found.items()}


def _draw(axis: Any, panel: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Draw the curves of a panel; what is compiled has the colour of what is not, and is dashed."""
    title, xlabel, ylabel = PANELS[panel]
    plain = {name: name.replace(COMPILED, "") for name in lines}
    # Not `style.colours`, which takes what follows a comma for an ending.
    colours = dict(zip(dict.fromkeys(plain.values()), cycle(_COLOURS), strict=False))
    for name, points in lines.items():
        counts, values = zip(*points, strict=True)
        look = "o--" if COMPILED in name else "o-"
        (line,) = axis.loglog(counts, values, look, label=name, markersize=4, color=colours[plain[name]])
        if panel != "memory" and name == next(iter(lines)):
            proportional = [values[0] * count / counts[0] for count in counts]
            axis.loglog(counts, proportional, ":", color=line.get_color(), label="proportional to its start")
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ticks = sorted({count for points in lines.values() for count, _ in points})
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))  # covers no line


def number(value: float) -> str:
    """Format to three digits, "" for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sides(row: Row) -> list[str]:
    return list(dict.fromkeys([*row.times, *row.memory]))


def _spread(values: Sequence[float]) -> str:
    """Format the median, and the range of several values."""
    if not values:
        return ""
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"
