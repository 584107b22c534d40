"""The table on the terminal and in Markdown, the JSON, and the plot of cost against spectra and seeds."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Row, Yardstick
from specjax.atomic import atomic_file

HEADINGS = {
    "a": "Embedding",
    "b": "LoRA steps",
    "c": "Whole LoRA4 runs on cached features",
    "d": "All six configurations",
    "e": "A step of full fine-tuning",
    "f": "From a cold process",
    "g": "Peak memory, in processes of their own",
}
COLUMNS = (
    "",
    "what",
    "median s",
    "a second",
    "floor s",
    "of peak",
    "PyTorch s",
    "compiled s",
    "ratio",
    "first s",
    "",
)


def cells(row: Row, yardstick: Yardstick) -> list[str]:
    """Return one line of the table as text; what was not measured stays blank."""
    floor = row.floor(yardstick)
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
    """Return what a line measured, for who waits for the next."""
    shown = [f"{who} {row.median(who):.3g} s" for who in row.times]
    return f"{row.section}  {row.what}: {', '.join(shown + [row.note] * bool(row.note))}"


def print_table(rows: Sequence[Row], about: Mapping[str, Any], yardstick: Yardstick) -> None:
    """Print everything to the terminal."""
    table = Table(title="Throughput: medians of calls in turns; ratio is PyTorch's best over specjax")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("", "what") else "right")
    for section in sorted({row.section for row in rows}):
        for row in (row for row in rows if row.section == section):
            table.add_row(*cells(row, yardstick))
        table.add_section()
    console = Console()
    console.print(table if console.is_terminal else markdown(rows, about, yardstick))
    console.print(_described(about, yardstick), highlight=False)


def markdown(rows: Sequence[Row], about: Mapping[str, Any], yardstick: Yardstick) -> str:
    """Return the tables as Markdown, a heading for each section."""
    lines = [_described(about, yardstick), ""]
    head = [name or " " for name in COLUMNS[1:]]
    for section in sorted({row.section for row in rows}):
        lines += [f"### {section}. {HEADINGS[section]}", "", f"| {' | '.join(head)} |"]
        lines.append("|" + "---|" + "---:|" * (len(head) - 2) + "---|")
        for row in (row for row in rows if row.section == section):
            lines.append(f"| {' | '.join(cells(row, yardstick)[1:])} |")
        lines.append("")
    return "\n".join(lines)


def write_json(path: Path, rows: Sequence[Row], about: Mapping[str, Any], yardstick: Yardstick) -> None:
    """Write everything, the single times included."""
    entries = []
    for row in rows:
        derived = {"median": row.median(), "floor": row.floor(yardstick), "ratio": row.ratio()}
        entries.append(_without_nan({**dataclasses.asdict(row), **derived}))
    whole = {**about, "yardstick": dataclasses.asdict(yardstick), "rows": entries}
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(whole, indent=2) + "\n")


def plot_curves(
    path: Path, curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], device: str
) -> None:
    """Plot seconds against spectra and seeds, each line beside what is in proportion to its first point.

    `curves` has for each axis its lines by name, as (number, seconds). An axis without a line is left out.
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
        axis.plot([], [], ":", color="0.5", label="in proportion to the first")
        axis.set(xlabel=unit, ylabel="seconds", title=f"cost against {unit}")
        axis.legend(fontsize="small")
    figure.suptitle(device)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _described(about: Mapping[str, Any], yardstick: Yardstick) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['device']}, {about['cores']} cores, matrix products in {about['dtype']},"
        f" {about['date']}; {versions}."
        f" Measured peaks: {yardstick.flops / 1e9:,.0f} GFLOP/s, {yardstick.bandwidth / 1e9:,.0f} GB/s."
        f" Peak memory of the run: {about['peak_memory'] / 2**30:.1f} GiB."
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _without_nan(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in entry.items()
    }
