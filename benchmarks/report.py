"""Output of the results: table, Markdown, JSON, and a plot of time against spectra and seeds."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.timing import DevicePeaks, Row
from specjax.atomic import atomic_file

HEADINGS = {
    "a": "Embedding",
    "b": "LoRA steps",
    "c": "Whole LoRA4 runs on cached features",
    "d": "All six configurations",
    "e": "A step of full fine-tuning",
    "f": "In new processes",
    "g": "Peak memory, each task in a new process",
}
COLUMNS = (
    "",
    "what",
    "median s",
    "per second",
    "floor s",
    "of peak",
    "PyTorch s",
    "compiled s",
    "ratio",
    "first s",
    "",
)


def cells(row: Row, peaks: DevicePeaks) -> list[str]:
    """Return the cells of a row as text, blank where nothing was measured."""
    floor = row.floor(peaks)
    return [
        row.section,
        row.what,
        _number(row.median()),
        f"{_number(row.count / row.median())} {row.unit}",
        _number(floor),
        "" if math.isnan(floor) else f"{floor / row.median():.0%}",
        _number(row.median("torch")),
        _number(row.median("torch.compile")),
        "" if math.isnan(row.ratio()) else f"{row.ratio():.2f}",
        _number(row.first),
        row.note,
    ]


def one_line(row: Row) -> str:
    """Format the medians of a row as a line of progress."""
    shown = [f"{side} {row.median(side):.3g} s" for side in row.times]
    return f"{row.section}  {row.what}: {', '.join(shown + [row.note] * bool(row.note))}"


def print_table(rows: Sequence[Row], environment: Mapping[str, Any], peaks: DevicePeaks) -> None:
    """Print the table, as Markdown if the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        print(markdown(rows, environment, peaks))
        return
    table = Table(title="Medians of alternating calls; ratio: fastest PyTorch time / specjax time")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("", "what") else "right")
    for section in sorted({row.section for row in rows}):
        for row in _in_section(rows, section):
            table.add_row(*cells(row, peaks))
        table.add_section()
    console.print(table)
    console.print(_describe(environment, peaks), highlight=False)


def markdown(rows: Sequence[Row], environment: Mapping[str, Any], peaks: DevicePeaks) -> str:
    """Return the tables as Markdown, with one heading per section."""
    lines = [_describe(environment, peaks), ""]
    head = [name or " " for name in COLUMNS[1:]]
    for section in sorted({row.section for row in rows}):
        lines += [f"### {section}. {HEADINGS[section]}", "", f"| {' | '.join(head)} |"]
        lines.append("|" + "---|" + "---:|" * (len(head) - 2) + "---|")
        for row in _in_section(rows, section):
            lines.append(f"| {' | '.join(cells(row, peaks)[1:])} |")
        lines.append("")
    return "\n".join(lines)


def write_json(path: Path, rows: Sequence[Row], environment: Mapping[str, Any], peaks: DevicePeaks) -> None:
    """Write all results, including the times of single calls."""
    entries = []
    for row in rows:
        derived = {"median": row.median(), "floor": row.floor(peaks), "ratio": row.ratio()}
        entries.append(_without_nan({**dataclasses.asdict(row), **derived}))
    whole = {**environment, "yardstick": dataclasses.asdict(peaks), "rows": entries}
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(whole, indent=2) + "\n")


def plot_curves(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], device: str
) -> None:
    """Plot time against the number of spectra and of seeds, with lines of proportional time for comparison.

    Args:
        path: PNG to write; not written if there are no curves.
        curves: for each panel ("spectra", "seeds") its curves by name, as (number, seconds); empty panels are
            left out.
        device: title of the figure.
    """
    drawn = {unit: lines for unit, lines in curves.items() if lines}
    if not drawn:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(drawn), figsize=(5 * len(drawn), 4), layout="constrained", squeeze=False
    )
    for axis, (unit, lines) in zip(axes.flat, drawn.items(), strict=True):
        for name, points in lines.items():
            counts, seconds = zip(*points, strict=True)
            (line,) = axis.loglog(counts, seconds, "o-", label=name)
            proportional = [seconds[0] * count / counts[0] for count in counts]
            axis.loglog(counts, proportional, ":", color=line.get_color(), alpha=0.7)
        axis.plot([], [], ":", color="0.5", label="proportional to the first point")
        axis.set(xlabel=f"number of {unit}", ylabel="time (s)", title=f"time against number of {unit}")
        axis.legend(fontsize="small")
    figure.suptitle(device)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _in_section(rows: Sequence[Row], section: str) -> list[Row]:
    return [row for row in rows if row.section == section]


def _describe(environment: Mapping[str, Any], peaks: DevicePeaks) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['device']}, {environment['cores']} cores, matrix products in {environment['dtype']},"
        f" {environment['date']}; {versions}."
        f" Measured peaks: {peaks.flops / 1e9:,.0f} GFLOP/s, {peaks.bandwidth / 1e9:,.0f} GB/s."
        f" Peak memory of the run: {environment['peak_memory'] / 2**30:.1f} GiB."
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _without_nan(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in entry.items()
    }
