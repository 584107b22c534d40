"""The folder that a run leaves behind (configuration, table of scores, predictions) and the printed table.

Every file appears whole or not at all. `table.json` is a list of rows, one a (target, configuration, subset),
as `table_rows` makes them; numbers have all their digits and NaN is null.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]

CONFIG, TABLE, PREDICTIONS = "config.json", "table.json", "predictions"
KINDS = ("baseline", "zero-shot", "adapted")


def table_rows(
    target: str, configuration: str, scores: Iterable[Mapping[str, Any]], *, kind: str | None = None
) -> list[Row]:
    """Put a configuration's scores (from `metrics.summarise`) under its target and name.

    Args:
        target: the survey that was adapted to.
        configuration: "lora4", "lora1+lora2", "zero-shot-mlp1", ... or a baseline's name.
        scores: rows of `metrics.summarise`.
        kind: one of `KINDS`; by default read off the configuration's name.
    """
    kind = kind or configuration_kind(configuration)
    return [{"target": target, "configuration": configuration, "kind": kind, **score} for score in scores]


def configuration_kind(configuration: str) -> str:
    """Say "adapted" for lora1 to lora4 joined by "+", "zero-shot" for zero-shot-mlp1 or 2, or "baseline"."""
    if re.fullmatch(r"lora[1-4](\+lora[1-4])*", configuration):
        return "adapted"
    return "zero-shot" if configuration in ("zero-shot-mlp1", "zero-shot-mlp2") else "baseline"


def write_config(folder: str | Path, config: Any) -> Path:
    """Write the resolved configuration (a mapping or dataclass) as ``folder``/config.json."""
    return _write_json(Path(folder) / CONFIG, config)


def write_table(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows as ``folder``/table.json, a list of objects."""
    return _write_json(Path(folder) / TABLE, list(rows))


def read_table(folder: str | Path) -> list[Row]:
    """Read the rows back; what was NaN is NaN again.

    Raises:
        DataError: there is no table, or it is not one of ours.
    """
    path = Path(folder) / TABLE
    try:
        rows = json.loads(path.read_text())
        return [
            {k: math.nan if v is None and k != "n_distinct" else v for k, v in row.items()} for row in rows
        ]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is not a table of scores: {error}") from None


def print_table(
    rows: Sequence[Mapping[str, Any]], *, unit: str = "dex", console: "Console | None" = None
) -> None:
    """Print one table a target: sigma, R2 and gain on all stars, sigma and R2 on both metallicity ranges.

    The smallest sigma of each column is bold; a gain or loss beyond two standard errors is green or red.
    Where output is not a terminal, the table is as wide as it needs to be.
    """
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=140, color_system=None)
    for target in dict.fromkeys(row["target"] for row in rows):
        console.print(format_table([row for row in rows if row["target"] == target], target, unit))


def format_table(rows: Sequence[Mapping[str, Any]], title: str, unit: str = "dex") -> "Table":
    """Build the rich table of one target's rows."""
    from rich import box
    from rich.table import Table

    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["configuration"], {})[row["subset"]] = row
    table = Table(title=title, caption=_caption(rows, unit), box=box.SIMPLE_HEAD, title_justify="left")
    table.caption_justify = "left"
    table.add_column("configuration", no_wrap=True)
    for heading in ("σ all", "R²", "gain", "σ [Fe/H] ≥ -1", "R²", "σ [Fe/H] < -1", "R²"):
        table.add_column(heading, justify="right", no_wrap=True)
    best = {s: _best([by[s] for by in cells.values() if s in by]) for s in ("all", "fe_h>=-1", "fe_h<-1")}
    for configuration, by in cells.items():
        line = []
        for subset, smallest in best.items():
            row = by.get(subset, {})
            sigma = _pm(row, "sigma")
            line += [
                f"[bold]{sigma}[/]" if row and row["sigma"] == smallest else sigma,
                _number(row.get("r2"), 3),
            ]
            line += [_gain(row)] if subset == "all" else []
        style = "dim" if next(iter(by.values())).get("kind") == "baseline" else None
        table.add_row(configuration, *line, style=style)
    return table


def write_predictions(folder: str | Path, columns: Mapping[str, Any], *, suffix: str = ".ecsv") -> Path:
    """Write ``folder``/predictions as .ecsv, .fits, .parquet or .csv, with units by column name.

    Args:
        folder: the run's folder.
        columns: (n,) arrays by name; strings, numbers and booleans.
        suffix: the format.

    Raises:
        DataError: another suffix, columns of different lengths, or pyarrow missing for .parquet.
    """
    from specjax.surveys.io.tables import write_table as write_columns

    path = (Path(folder) / PREDICTIONS).with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_columns(path, columns)
    return path


def _write_json(path: Path, content: Any) -> Path:
    """Write indented JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    return path


def plain(value: Any) -> Any:
    """Turn dataclasses, paths, NumPy and JAX arrays into what JSON holds; what is not finite becomes None."""
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
    """The smallest finite sigma, or NaN."""
    return min((r["sigma"] for r in rows if np.isfinite(r["sigma"])), default=math.nan)


def _caption(rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    """How many stars and seeds, and which columns are pooled."""
    first = next((row for row in rows if row["subset"] == "all"), rows[0])
    pooled = sorted({row["subset"] for row in rows if row.get("pooled")})
    caption = f"σ and gain in {unit}, ± standard error over {first['n_seeds']} seeds"
    caption += f"; {first['n_stars']:g} test stars a seed"
    return caption + (f"; pooled over seeds: {', '.join(pooled)}" if pooled else "")


def _number(value: float | None, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _pm(row: Mapping[str, Any], name: str) -> str:
    """Value ± error, with three decimals; the error only where there is one."""
    text, error = _number(row.get(name), 3), _number(row.get(f"{name}_err"), 3)
    return text if error == "-" or text == "-" else f"{text} ± {error}"


def _gain(row: Mapping[str, Any]) -> str:
    """The signed paired gain, coloured where it is beyond two standard errors; blank where there is none."""
    gain, error = row.get("sigma_gain", math.nan), row.get("sigma_gain_err", math.nan)
    if not np.isfinite(gain) or (gain == 0 and not error > 0):
        return ""
    text = f"{gain:+.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")
    if np.isfinite(error) and abs(gain) > 2 * error:
        return f"[green]{text}[/]" if gain > 0 else f"[red]{text}[/]"
    return text
