"""The report of a run folder: one HTML file with its tables, figures, warnings and settings.

It is made of the files in the folder alone, so that it can be made for a run of any time, and shows what is
there: a run without a table of calibration, say, has no such section.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax._version import __version__
from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.overwrite import check_replaceable
from specjax.plurals import counted
from specjax.report import html
from specjax.report.cautions import cautions, direction, groups, is_gain, percent
from specjax.report.glossary import terms
from specjax.report.metrics import SUBSETS
from specjax.report.next_step import ADAPTERS, best_adapter, predict_command
from specjax.report.results import (
    CALIBRATION,
    CONFIG,
    HEADINGS,
    PREDICTIONS,
    Row,
    read_calibration,
    read_table,
    value_and_interval,
)
from specjax.units import symbol_and_unit

REPORT = "report.html"
"""The name of the page in a run folder."""

_KEYS = frozenset({"target", "configuration", "kind", "subset", "sigma", "r2", "n_stars", "n_seeds"})
_FIGURES = {
    "sigma": "Robust scatter of every configuration, with 95% intervals over stars",
    "predictions_": "Predicted against literature labels of the test stars, 68% intervals, and residuals",
    "calibration": "Coverage and width of the intervals, by subset of the test stars",
    "plan": "Robust scatter against the number of training stars",
}


def write_page(folder: str | Path) -> Path:
    """Write `REPORT` into a run folder, and return its path.

    Raises:
        DataError: the folder is not that of a run of `specjax adapt`, or its files are damaged.
        SpecjaxError: the file exists, and specjax has not written it.
    """
    path = Path(folder) / REPORT
    check_replaceable(path)
    content = make_page(folder)
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path


def make_page(folder: str | Path) -> str:
    """Return the page of a run folder; errors as of `write_page`."""
    folder = Path(folder)
    rows = read_table(folder)
    if not rows or not all(row.keys() >= _KEYS for row in rows):
        raise DataError(f"{folder} is not the folder of a run of specjax adapt: its table has no scores")
    config = _read(folder / CONFIG)
    has_intervals = (folder / f"{CALIBRATION}.json").is_file()
    calibration = read_calibration(folder) if has_intervals else []
    label = _label(folder, rows)
    names = ", ".join(dict.fromkeys(row["target"] for row in rows))
    title = f"Adaptation to {names}{f': {symbol_and_unit(label)[0]}' if label else ''}"
    made = config.get("made") if isinstance(config.get("made"), Mapping) else {}
    heading = html.text("h1", title) + html.text("p", _summary(rows, config), class_="note")
    body = [
        html.element("header", heading + html.folded("What the terms mean", terms(rows, calibration))),
        html.section("Warnings", html.bullets(cautions(rows, config, calibration), class_="warnings")),
        html.section("Scores", *_score_tables(rows, label, config)),
        html.section("Figures", *_figures(folder)),
        html.section("Calibration of the intervals", *_calibration_tables(calibration)),
        html.section("Adapters", *_adapters(folder, rows, config)),
        html.section("Settings", html.settings({k: v for k, v in config.items() if k != "made"})),
        html.section("How it was made", *_provenance(made or {})),
    ]
    return html.page(title, [part for part in body if part])


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; {} if there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _label(folder: Path, rows: Sequence[Row]) -> str:
    """Return the label of a run, from its table or from the columns of its predictions; "" for several."""
    named = {row["label"] for row in rows if "label" in row}
    path = folder / f"{PREDICTIONS}.ecsv"
    if not named and path.is_file():
        with path.open(encoding="utf-8") as file:
            columns = next((line.split() for line in file if not line.startswith("#")), [])
        named = {name.removesuffix("_predicted") for name in columns if name.endswith("_predicted")}
    return named.pop() if len(named) == 1 else ""


def _summary(rows: Sequence[Row], config: Mapping[str, Any]) -> str:
    """Name the model, the stars and the seeds."""
    first = next((row for row in rows if row["subset"] == "all"), rows[0])
    model = f"Model {config['model']}. " if config.get("model") else ""
    return (
        f"{model}{counted(first['n_seeds'], 'random split')} of the labelled stars{_sizes(rows, config)}."
        " Numbers in brackets are 95% intervals over stars."
    )


def _sizes(rows: Sequence[Row], config: Mapping[str, Any]) -> str:
    """State the sizes of the splits of a run that does not list them by target."""
    settings = config.get("adapt")
    if not isinstance(settings, Mapping) or len(groups(rows)) > 1 or config.get("splits"):
        return ""
    if None in (settings.get("train"), settings.get("validate")):
        return ""
    return f", each with {settings['train']} training and {settings['validate']} validation stars"


def _score_tables(rows: Sequence[Row], label: str, config: Mapping[str, Any]) -> list[str]:
    """Return two tables per target and label: of all stars with gains, and by metallicity."""
    listed = [one for one in config.get("splits") or [] if isinstance(one, Mapping)]
    tables = []
    for (target, own), found in groups(rows).items():
        symbol, unit = symbol_and_unit(own or label)
        title = f"{target}, {symbol}{f' in {unit}' if unit else ''}"
        count = next((row["n_stars"] for row in found if row["subset"] == "all"), 0)
        sizes = next((one for one in listed if (one.get("target"), one.get("label")) == (target, own)), {})
        others = "".join(
            f"{sizes[name]} {text}, "
            for name, text in (("train", "training"), ("validate", "validation"))
            if name in sizes
        )
        tables.append(_overall(found, f"{title}: {others}{counted(count, 'test star')} per split"))
        if any(row["subset"] != "all" and row.get("n_predictions") for row in found):
            tables.append(_by_metallicity(found, f"{title}: by metallicity"))
    return tables


def _overall(rows: Sequence[Row], caption: str) -> str:
    everything = [row for row in rows if row["subset"] == "all"]
    best = min((row["sigma"] for row in everything if math.isfinite(row["sigma"])), default=math.nan)
    lines = []
    for row in everything:
        cells = [("", row["configuration"]), ("best" if row["sigma"] == best else "", _shown(row, "sigma"))]
        cells += [("", _shown(row, "r2")), ("", _shown(row, "bias", signed=True))]
        cells.append((direction(row), _shown(row, "sigma_gain", signed=True) if is_gain(row) else ""))
        lines.append((row["kind"], cells))
    headings = ("configuration", "robust scatter σ", "R²", "bias", "gain in σ over zero-shot")
    return html.table(headings, lines, caption=caption)


def _by_metallicity(rows: Sequence[Row], caption: str) -> str:
    found = {(row["configuration"], row["subset"]): row for row in rows}
    kinds = {row["configuration"]: row["kind"] for row in rows}
    headings, lines = ["configuration"], []
    for subset in SUBSETS[1:]:
        counts = [row["n_distinct"] for row in rows if row["subset"] == subset and "n_distinct" in row]
        stars = f" ({counted(counts[0], 'star')})" if counts else ""
        headings += [f"σ, {HEADINGS[subset]}{stars}", "R²"]
    for name, kind in kinds.items():
        cells = [("", name)]
        for subset in SUBSETS[1:]:
            row = found.get((name, subset), {})
            cells += [("", _shown(row, "sigma")), ("", _shown(row, "r2"))]
        lines.append((kind, cells))
    return html.table(headings, lines, caption=caption)


def _shown(row: Mapping[str, Any], name: str, *, signed: bool = False) -> str:
    return value_and_interval(row, name, signed=signed)


def _figures(folder: Path) -> list[str]:
    """Return the figures of the folder, in the order of `_FIGURES`, then any others."""
    paths = sorted(folder.glob("*.png"))
    order = list(_FIGURES)

    def place(path: Path) -> int:
        return next((k for k, start in enumerate(order) if path.stem.startswith(start)), len(order))

    shown = []
    for path in sorted(paths, key=place):
        start = order[place(path)] if place(path) < len(order) else ""
        about = path.stem.removeprefix(start).strip("_")
        description = _FIGURES.get(start, path.stem)
        shown.append(html.image(path, f"{description}: {about}" if about and start else description))
    return shown


def _calibration_tables(rows: Sequence[Row]) -> list[str]:
    tables = []
    for (target, label), found in groups([{"target": "", **row} for row in rows]).items():
        lines = []
        for row in found:
            subset = str(row.get("subset", "")).replace("snr", "S/N")
            name = f"{row.get('configuration', '')}: {subset}"
            cells = [("", name), ("", str(row.get("n_stars", "")))]
            cells += [("", percent(row, name)) for name in ("coverage68", "coverage95")]
            cells += [("", _shown(row, name)) for name in ("width68", "width95", "crps")]
            lines.append((str(row.get("kind", "")), cells))
        columns = ("stars", "in 68%", "in 95%", "width of 68%", "width of 95%", "CRPS")
        caption = f"Test labels of {target} in their intervals{f' ({label})' if label else ''}"
        tables.append(html.table(("configuration: subset", *columns), lines, caption=caption))
    return tables


def _adapters(folder: Path, rows: Sequence[Row], config: Mapping[str, Any]) -> list[str]:
    """Return the adapters of the folder, and how to use the best ones."""
    found = sorted(path.parent for path in (folder / ADAPTERS).rglob(CONFIG))
    if not found:
        return []
    names = [path.relative_to(folder).as_posix() for path in found]
    best = best_adapter(folder, rows) or found[0]
    command = html.element("pre", html.text("code", predict_command(best, config)))
    return [html.bullets(names), html.text("p", "Predict with those of the smallest scatter:"), command]


def _provenance(made: Mapping[str, Any]) -> list[str]:
    """Return the command, the date and the versions, as far as they were recorded."""
    versions = made.get("versions")
    lines = [f"Made on {made['date']}."] if made.get("date") else []
    if isinstance(versions, Mapping):
        lines.append(f"Versions: {', '.join(f'{name} {found}' for name, found in versions.items())}.")
    if made.get("devices"):
        lines.append(f"Computed on {made['devices']}.")
    if not made:
        lines.append("Command and versions of this run were not recorded.")
    lines.append(f"This page was written by specjax {__version__}.")
    command = made.get("command")
    shown = html.element("pre", html.text("code", command)) if command else ""
    return [shown, *(html.text("p", line) for line in lines)]
