"""The files of a run folder (configuration, table of scores, predictions) and the printed table.

Files are written atomically. `table.json` is a list of rows, one per target, label, configuration and
subset, as made by `table_rows`; numbers are written with all digits and NaN as null.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.plurals import counted
from specjax.report.metrics import SUBSETS
from specjax.surveys.io.tables import write_table as write_columns
from specjax.units import symbol_and_unit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]


class Rows(list[Row]):
    """Rows of table.json: a list, which a notebook shows as the table of all stars."""

    def __repr__(self) -> str:
        targets, names = ({row.get(key) for row in self} for key in ("target", "configuration"))
        return f"<Rows: {len(self)} scores of {len(names)} configurations on {len(targets)} targets>"

    def _repr_html_(self) -> str:
        lines = [row for row in self if row["subset"] == "all"]
        columns = {"σ": "sigma", "R²": "r2", "gain in σ": "sigma_gain"}
        head = "".join(f"<th>{heading}</th>" for heading in ("target", "configuration", *columns))
        body = "".join(
            f"<tr><td>{escape(row['target'])}</td><td>{escape(row['configuration'])}</td>"
            + "".join(f"<td>{value_and_interval(row, name)}</td>" for name in columns.values())
            + "</tr>"
            for row in lines
        )
        note = "test stars; brackets: 95% intervals over stars"
        return f"<table><caption>{note}</caption><tr>{head}</tr>{body}</table>"


Kind = Literal["baseline", "zero-shot", "adapted"]
"""Without the foundation model, by the model as pretrained, or by the model with trained LoRA factors."""

WIDTH = 120  # columns that most of the printed tables need
_WIDEST = 1000  # columns within which a table with wide numbers finds its own width
HEADINGS = dict(zip(SUBSETS, ("all stars", "[Fe/H] ≥ -1", "[Fe/H] < -1"), strict=True))
CONFIG, TABLE, PREDICTIONS, CALIBRATION = "config.json", "table.json", "predictions", "calibration"


def table_rows(
    target: str, configuration: str, scores: Iterable[Mapping[str, Any]], *, kind: Kind, label: str = "fe_h"
) -> list[Row]:
    """Add target, label, configuration and kind to the scores of a configuration.

    Args:
        target: name of the survey that was adapted to.
        configuration: name of the configuration or baseline.
        scores: rows of `metrics.summarise`.
        kind: how the predictions were made.
        label: what was predicted.
    """
    about = {"target": target, "label": label, "configuration": configuration, "kind": kind}
    return [{**about, **score} for score in scores]


def write_config(folder: str | Path, config: Any) -> Path:
    """Write the resolved configuration (a mapping or dataclass) to ``folder``/config.json."""
    return _write_json(Path(folder) / CONFIG, config)


def write_table(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows to ``folder``/table.json."""
    return _write_json(Path(folder) / TABLE, list(rows))


def write_calibration(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows of `calibration.calibration_rows` to ``folder``/calibration.json and .ecsv."""
    path = Path(folder) / CALIBRATION
    columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else {})}
    write_columns(path.with_suffix(".ecsv"), columns)
    return _write_json(path.with_suffix(".json"), list(rows))


def read_calibration(folder: str | Path) -> list[Row]:
    """Read the rows of ``folder``/calibration.json.

    Raises:
        DataError: there is no such file, or it is not a table of scores.
    """
    return _read_rows(Path(folder) / f"{CALIBRATION}.json")


def read_table(folder: str | Path) -> Rows:
    """Read the rows of ``folder``/table.json, with null as NaN again.

    Raises:
        DataError: there is no such file, or it is not a table of scores.
    """
    return Rows(_read_rows(Path(folder) / TABLE))


def _read_rows(path: Path) -> list[Row]:
    if not path.exists():
        raise DataError(f"{path.parent} is not the folder of a run (--out of adapt): it has no {path.name}")
    try:
        rows = json.loads(path.read_text())
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is not a table of scores: {error}") from None


def print_table(
    rows: Sequence[Mapping[str, Any]], *, unit: str | None = None, console: "Console | None" = None
) -> None:
    """Print two tables per target and label: scores and gains of all stars, and scores by metallicity.

    The smallest sigma of each column is bold; gains whose interval excludes zero are green, losses red.
    The unit is that of the label unless it is given. The console is widened if it is too narrow.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    # In a narrower terminal or a file, long lines lose nothing; cells cut to fit would.
    console.width = max(console.width, WIDTH)
    several = len({row.get("label") for row in rows}) > 1
    for target, label in dict.fromkeys((row["target"], row.get("label", "fe_h")) for row in rows):
        mine = [row for row in rows if (row["target"], row.get("label", "fe_h")) == (target, label)]
        symbol, own_unit = symbol_and_unit(label)
        title = f"{target}: {symbol}" if several else target
        for table in format_tables(mine, title, own_unit if unit is None else unit):
            wide = console.options.update(max_width=_WIDEST)
            console.width = max(console.width, Measurement.get(console, wide, table).maximum)
            console.print(table)


def format_tables(
    rows: Sequence[Mapping[str, Any]], title: str, unit: str = "dex"
) -> tuple["Table", "Table"]:
    """Build the rich tables of one target's rows."""
    overall = _empty_table(title, ("σ", "R²", "gain in σ", "gain in R²"))
    ranges = _empty_table(
        f"{title} by metallicity", [h for name in SUBSETS[1:] for h in (f"σ {HEADINGS[name]}", "R²")]
    )
    ranges.caption = _caption(rows, unit)
    scores = {(row["configuration"], row["subset"]): row for row in rows}
    best = {name: _best([row for row in rows if row["subset"] == name]) for name in SUBSETS}
    for configuration in dict.fromkeys(row["configuration"] for row in rows):
        cells = []
        for subset in SUBSETS:
            row = scores.get((configuration, subset), {})
            sigma = value_and_interval(row, "sigma")
            is_best = bool(row) and row["sigma"] == best[subset]
            cells += [f"[bold]{sigma}[/]" if is_best else sigma, value_and_interval(row, "r2")]
        everything = scores.get((configuration, SUBSETS[0]), {})
        gains = [_gain(everything, name) for name in ("sigma_gain", "r2_gain")]
        kind = next(row["kind"] for row in rows if row["configuration"] == configuration)
        style = "dim" if kind == "baseline" else None
        overall.add_row(configuration, *cells[:2], *gains, style=style)
        ranges.add_row(configuration, *cells[2:], style=style)
    return overall, ranges


def _empty_table(title: str, headings: Iterable[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("configuration", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def value_and_interval(row: Mapping[str, Any], name: str, *, signed: bool = False) -> str:
    """Format "value [low, high]" of a row with three decimals, or one for values of ten and more (in K).

    Returns "-" without a value, and the value alone without an interval.
    """
    numbers = [row.get(key) for key in (name, f"{name}_lo", f"{name}_hi")]
    value, *ends = (math.nan if number is None else number for number in numbers)
    if not math.isfinite(value):
        return "-"
    form = ("+" if signed else "") + (".3f" if abs(value) < 10 else ".1f")
    text = format(value, form)
    return f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]" if all(map(math.isfinite, ends)) else text


def write_predictions(folder: str | Path, columns: Mapping[str, Any], *, suffix: str = ".ecsv") -> Path:
    """Write ``folder``/predictions with the units of `specjax.units`.

    Args:
        folder: folder of the run.
        columns: (n,) arrays of strings, numbers or booleans by column name.
        suffix: format of the file: .ecsv, .fits, .vot, .parquet or .csv.

    Raises:
        DataError: another suffix, columns of different lengths, or .parquet without pyarrow.
    """
    path = (Path(folder) / PREDICTIONS).with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_columns(path, columns)
    return path


def _write_json(path: Path, content: Any) -> Path:
    """Write JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    return path


def plain(value: Any) -> Any:
    """Convert dataclasses, paths, NumPy and JAX arrays to JSON types; NaN and infinities become None.

    Raises:
        TypeError: a value of any other type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _best(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the smallest finite sigma, or NaN."""
    return min((r["sigma"] for r in rows if np.isfinite(r["sigma"])), default=math.nan)


def _caption(rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    """State the numbers of stars and seeds, and the subsets that are pooled."""
    first = next((row for row in rows if row["subset"] == "all"), rows[0])
    pooled = [
        HEADINGS[name] for name in SUBSETS if any(r["subset"] == name and r.get("pooled") for r in rows)
    ]
    caption = f"σ in {unit}; 95% intervals over stars; {counted(first['n_seeds'], 'seed')}"
    caption += f"; {counted(first['n_stars'], 'test star')} per seed"
    return caption + (f"; all seeds pooled: {', '.join(pooled)}" if pooled else "")


def _gain(row: Mapping[str, Any], name: str) -> str:
    """Format the signed gain, coloured if its interval excludes zero; blank if there is no gain."""
    gain, low, high = (row.get(f"{name}{end}", math.nan) for end in ("", "_lo", "_hi"))
    if not math.isfinite(gain) or (gain == 0 and not high > low):
        return ""
    text = value_and_interval(row, name, signed=True)
    if low > 0 or high < 0:
        return f"[green]{text}[/]" if low > 0 else f"[red]{text}[/]"
    return text
