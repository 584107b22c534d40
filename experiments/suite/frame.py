"""What all experiments share: settings, finished rows on disk, and results that are written as one folder.

An experiment is a module with `get_config() -> Config` and `run(config, out, say) -> Results`. It makes its
rows one by one through `Kept`, so that a run that was killed goes on where it stopped, and turns its table
into sentences by functions, so that no figure in the page is typed by hand.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from specjax._version import __version__
from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.prepare.resume import begin_or_resume
from specjax.progress import Say, say
from specjax.report.results import plain, value_and_interval
from specjax.typing import AnyArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Draw = Callable[["Figure"], None]

TABLE, PLOT = "table", "plot"
"""Names of the files of an experiment, without suffix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that all experiments have; each adds what it varies.

    Attributes:
        preset: "mini" takes the models that ship: mini-physics for MILES, mini for all other targets. "paper"
            takes converted weights, the folder `model`.
        model: model folder, "mini" or "mini-physics", in place of those.
        targets: targets from the stellar libraries: miles, miles-grism, stelib, stelib-grism.
        target: folder of a survey of your own, used in place of `targets`: `spectra` (a folder, or a file
            spectra.*) and a table labels.*, as `specjax adapt` takes them, and optionally xp.*, the Gaia XP
            spectra.
        fwhm: resolution of its spectra in Angstrom, if known.
        label: label to adapt to.
        seeds: random splits.
        train: training stars of each; 89 of MILES and 60 of other targets by default.
        validate: validation stars of each; 9 of MILES and 10 of other targets by default.
    """

    preset: Literal["mini", "paper"] = "mini"
    model: str | None = None
    targets: tuple[str, ...] = ("miles-grism",)
    target: Path | None = None
    fwhm: float | None = None
    label: str = "fe_h"
    seeds: int = 4
    train: int | None = None
    validate: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        name: key of the rows. An interval is in the keys NAME_lo and NAME_hi.
        heading: as printed.
        unit: as astropy writes it.
        signed: print the sign of positive numbers too.
    """

    name: str
    heading: str
    unit: str = ""
    signed: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the cell of a row, with the interval if there is one; empty without a value."""
        value = row.get(self.name, math.nan)
        if isinstance(value, float):
            return value_and_interval(row, self.name, signed=self.signed) if math.isfinite(value) else ""
        return str(value)


SCORES = (
    Column(name="sigma", heading="σ", unit="dex"),
    Column(name="r2", heading="R²"),
    Column(name="bias", heading="offset", unit="dex", signed=True),
)
"""Accuracy of predictions on test stars, see `specjax.report.metrics`."""

GAIN = Column(name="sigma_gain", heading="gain in σ", unit="dex", signed=True)
"""The scatter of a reference minus that of the row, on the same stars."""

BASELINE = (
    Column(name="baseline", heading="strongest baseline"),
    Column(name="baseline_sigma", heading="its σ", unit="dex"),
)
"""See `beside_strongest`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """The outcome of an experiment.

    Attributes:
        name: of its module.
        title: heading of its section in the page.
        question: what it asks; one sentence.
        method: how it was measured: model, stars and seeds.
        columns: of the table.
        rows: one dict per row.
        sentences: what the table says, made of it by functions.
        answers: by a key of `page.QUESTIONS`, one sentence for the head of the page.
        draw: draws the plot on a figure of one column width.
    """

    name: str
    title: str
    question: str
    method: str
    columns: tuple[Column, ...]
    rows: Sequence[Row]
    sentences: Sequence[str]
    answers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    draw: Draw | None = None

    def write(self, out: Path) -> None:
        """Write table.json, table.ecsv and, if anything is drawn, plot.png and plot.pdf."""
        from experiments.suite import figures

        if self.draw is not None:
            figures.save(out / PLOT, self.draw)
        _write_ecsv(out / f"{TABLE}.ecsv", self)
        content = {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "draw"
        }
        _write_json(out / f"{TABLE}.json", content)

    @classmethod
    def read(cls, out: Path) -> "Results":
        """Read table.json.

        Raises:
            DataError: it is missing or damaged.
        """
        path = out / f"{TABLE}.json"
        try:
            content = json.loads(path.read_text())
            columns = tuple(Column(**column) for column in content.pop("columns"))
            rows = [_with_nan(row) for row in content.pop("rows")]
            return cls(columns=columns, rows=rows, **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not the table of an experiment: {error}") from None


class Kept:
    """Finished rows and arrays of an experiment, one file each in the folder `rows` of its results."""

    def __init__(self, out: Path, config: Any) -> None:
        """Open the folder of an experiment.

        Args:
            out: folder of the results.
            config: settings that the rows depend on.

        Raises:
            ConfigError: the folder holds rows of other settings or of another version.
        """
        self.folder = Path(out) / "rows"
        options = {name: value for name, value in plain(config).items()}
        begin_or_resume(self.folder, {"version": __version__, "options": options, "stamps": {}})

    def row(self, key: str, make: Callable[[], Row]) -> Row:
        """Return a finished row, or make and keep it.

        Args:
            key: names the file; letters, digits and any of "_.+=/-".
            make: returns the row: numbers, texts and NaN by name.
        """
        path = self._path(key, ".json")
        if not path.exists():
            _write_json(path, plain(make()))
        row: Row = _with_nan(json.loads(path.read_text()))
        return row

    def arrays(self, key: str, make: Callable[[], Mapping[str, AnyArray]]) -> dict[str, AnyArray]:
        """Return finished arrays by name, or make and keep them."""
        path = self._path(key, ".npz")
        if not path.exists():
            made: dict[str, Any] = dict(make())
            with atomic_file(path) as temporary:
                np.savez(temporary, **made)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def array(self, key: str, make: Callable[[], AnyArray]) -> AnyArray:
        """Return one finished array, or make and keep it."""
        return self.arrays(key, lambda: {"values": make()})["values"]

    def _path(self, key: str, suffix: str) -> Path:
        if not re.fullmatch(r"[\w.+=/-]+", key):
            raise ValueError(f"{key!r} cannot name a row")
        return self.folder / f"{key}{suffix}"


def beside_strongest(rows: Sequence[Row], by: Sequence[str] = ("target",)) -> list[Row]:
    """Name the strongest baseline beside every row, with its scatter and interval.

    Args:
        rows: each with sigma and "kind", which is "baseline" for the baselines.
        by: keys; the strongest baseline is the one of smallest sigma among the rows that agree in these.

    Returns:
        The rows with the keys baseline, baseline_sigma, baseline_sigma_lo and baseline_sigma_hi; empty where
        there is no baseline.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        group = tuple(row[key] for key in by)
        if row["kind"] == "baseline" and row["sigma"] < best.get(group, {"sigma": math.inf})["sigma"]:
            best[group] = row
    named = []
    for row in rows:
        found = best.get(tuple(row[key] for key in by), {})
        ends = {f"baseline_sigma{end}": found.get(f"sigma{end}", math.nan) for end in ("", "_lo", "_hi")}
        named.append({**row, "baseline": found.get("name", ""), **ends})
    return named


def figure_of(row: Mapping[str, Any], name: str = "sigma", unit: str = "dex", *, signed: bool = False) -> str:
    """Return a number of a row with its interval and unit, for a sentence.

    >>> figure_of({"sigma": 0.17, "sigma_lo": 0.154, "sigma_hi": 0.186})
    '0.170 [0.154, 0.186] dex'
    """
    return f"{value_and_interval(row, name, signed=signed)} {unit}".rstrip()


def command(name: str, config: Config, run: Callable[..., Results], description: str | None) -> None:
    """Run an experiment from its command line: its settings as options, and --out.

    Args:
        name: of the module.
        config: the defaults.
        run: of the module.
        description: its docstring.
    """
    import tyro

    from specjax import cli

    folder = Path("runs/experiments") / name
    kind, given = type(config), arguments(config, folder)
    given = tyro.cli(type(given), default=given, description=description)
    settings = kind(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})
    cli.run(lambda: finish(run, settings, given.out))


def arguments(config: Config, out: Path) -> Any:
    """Return the settings of an experiment with a further field, `out`, for its command line."""
    kind = type(config)
    fields = [("out", Path, dataclasses.field(default=out))]
    made: Any = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = (kind.__doc__ or "").rstrip() + "\n        out: folder to write.\n    "
    return made(out=out, **{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})


def finish(run: Callable[[Any, Path, Say], Results], config: Config, out: Path, tell: Say = say) -> Results:
    """Run an experiment and write its results."""
    from specjax.cache import use_compilation_cache

    use_compilation_cache()
    results = run(config, out, tell)
    results.write(out)
    for sentence in results.sentences:
        print(sentence, file=sys.stdout, flush=True)
    return results


def _write_ecsv(path: Path, results: Results) -> None:
    from astropy.table import Table

    table = Table()
    for column in results.columns:
        for end in ("", "_lo", "_hi"):
            name = column.name + end
            if end and not any(name in row for row in results.rows):
                continue
            values = [row.get(name, math.nan) for row in results.rows]
            is_text = any(isinstance(value, str) for value in values)
            table[name] = [value if isinstance(value, str) else "" for value in values] if is_text else values
            if table[name].dtype.kind == "f":
                table[name].unit = column.unit or None
    with atomic_file(path) as temporary:
        table.write(temporary, format="ascii.ecsv", overwrite=True)


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _with_nan(row: Mapping[str, Any]) -> Row:
    """Turn null, as which NaN is written, into NaN again."""
    return {name: math.nan if value is None else value for name, value in row.items()}
