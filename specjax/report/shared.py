"""What is shared of a model, an adapter or a run: its verified files, and the facts for its card."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from specjax.checkpoints import Stored, load_adapter, load_model
from specjax.checkpoints.folders import CONFIG, MANIFEST, WEIGHTS
from specjax.errors import DataError, ModelError, SpecjaxError
from specjax.report.results import CALIBRATION, PREDICTIONS, TABLE, Row, read_calibration, read_table

CARD = "README.md"
PARTS = (MANIFEST, CONFIG, WEIGHTS)

_TABLES = (TABLE, f"{CALIBRATION}.json")
_PLOTS = ("sigma*.png", "predictions_*.png", "calibration_*.png")
_ABOVE = 4  # folders from an adapter up to its run: RUN/adapters/TARGET/CONFIGURATION/LABEL


@dataclass(frozen=True, kw_only=True)
class Stars:
    """The labelled stars of a target that were tested.

    Attributes:
        count: distinct stars.
        low: smallest label.
        high: largest label.
    """

    count: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says.

    Attributes:
        folder: the folder.
        rows: of table.json.
        calibration: rows of calibration.json, none if it has none.
        config: its config.json, {} if it has none.
        stars: by target and label, from the predictions.
    """

    folder: Path
    rows: Sequence[Row]
    calibration: Sequence[Row] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    stars: Mapping[tuple[str, str], Stars] = field(default_factory=dict)

    def rows_of(self, config: Mapping[str, Any]) -> list[Row]:
        """Return the rows for the target and the label of an adapter with this configuration."""
        return _rows_of(self.rows, config)

    def calibration_of(self, config: Mapping[str, Any]) -> list[Row]:
        """Return the rows of the calibration for the same."""
        return _rows_of(self.calibration, config)


def _rows_of(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Row]:
    target, label = config.get("target"), config.get("label")
    return [row for row in rows if row["target"] == target and row.get("label", label) == label]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A folder that is shared.

    Attributes:
        kind: of the folder.
        folder: its path.
        files: paths by their names in the repository, without the card.
        model: the model.
        adapters: by their folder in the repository, "" for the repository itself.
        run: the run that made the adapters, if it is known.
    """

    kind: Literal["model", "adapter", "run"]
    folder: Path
    files: Mapping[str, Path]
    model: Stored | None = None
    adapters: Mapping[str, Stored] = field(default_factory=dict)
    run: Run | None = None

    @property
    def digests(self) -> list[str]:
        """The digests of all that is shared."""
        stored = list(self.adapters.values()) if self.model is None else [self.model]
        return [one.digest for one in stored]


def read_shared(folder: str | Path) -> Shared:
    """Read and verify a model folder, an adapter folder, or a run folder with its adapters.

    Of a run the adapters, the tables of scores and the plots are shared, but neither its predictions, which
    contain the labels of the stars, nor its configuration, which names files.

    Raises:
        ModelError: the folder is none of these, or one of its parts is damaged.
        DataError: its table of scores is damaged.
    """
    folder = Path(folder).expanduser()
    if (folder / MANIFEST).is_file():
        return _one(folder)
    if not (folder / TABLE).is_file():
        raise ModelError(
            f"{folder} is no model, adapter or run folder: it has neither {MANIFEST} nor {TABLE}"
        )
    names = sorted(
        path.parent.relative_to(folder).as_posix() for path in folder.glob(f"adapters/**/{MANIFEST}")
    )
    if not names:
        raise ModelError(f"{folder} is a run folder without adapters")
    files = {f"{name}/{part}": folder / name / part for name in names for part in PARTS}
    files |= {path.name: path for pattern in (*_TABLES, *_PLOTS) for path in sorted(folder.glob(pattern))}
    adapters = {name: load_adapter(folder / name) for name in names}
    return Shared(kind="run", folder=folder, files=files, adapters=adapters, run=_read_run(folder))


def is_shared(name: str) -> bool:
    """Return whether a file of a repository is one that is written there, other than the card."""
    return (
        name in (*PARTS, *_TABLES)
        or (name.startswith("adapters/") and name.rpartition("/")[2] in PARTS)
        or any(Path(name).match(pattern) and "/" not in name for pattern in _PLOTS)
    )


def local_paths(shared: Shared) -> list[str]:
    """Return the absolute paths of this machine that the configurations contain, and would be published."""
    stored = [*shared.adapters.values(), *([] if shared.model is None else [shared.model])]
    found = {text for one in stored for text in _texts(one.config) if text.startswith(("/", "~"))}
    return sorted(found)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for each in inside for text in _texts(each)]


def _one(folder: Path) -> Shared:
    """Read a model or an adapter; the manifest says which."""
    files = {part: folder / part for part in PARTS}
    try:
        return Shared(kind="model", folder=folder, files=files, model=load_model(folder))
    except ModelError as error:
        if "is a specjax-adapter" not in str(error):
            raise
    adapters = {"": load_adapter(folder)}
    above = [path for path in folder.resolve().parents[:_ABOVE] if (path / TABLE).is_file()]
    run = _read_run(above[0]) if above else None
    return Shared(kind="adapter", folder=folder, files=files, adapters=adapters, run=run)


def _read_run(folder: Path) -> Run:
    rows = read_table(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        config = {}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} cannot be read: {error}") from None
    has_intervals = (folder / f"{CALIBRATION}.json").is_file()
    return Run(
        folder=folder,
        rows=rows,
        calibration=read_calibration(folder) if has_intervals else (),
        config=config,
        stars=_stars(folder, rows),
    )


def _stars(folder: Path, rows: Sequence[Row]) -> dict[tuple[str, str], Stars]:
    """Count the stars of predictions.ecsv and find the range of their labels."""
    from specjax.surveys.io.tables import read_table as read_columns

    try:
        table = read_columns((folder / PREDICTIONS).with_suffix(".ecsv"))
    except SpecjaxError:  # a run can be shared without its predictions
        return {}
    labels = {row["label"] for row in rows if "label" in row} or {
        name for name in table.colnames if f"{name}_predicted" in table.colnames
    }
    found = {}
    for target in {row["target"] for row in rows}:
        mine = np.asarray(table["target"] == target)
        for label in labels & set(table.colnames):
            values = np.asarray(table[label][mine], dtype=float)
            known = np.isfinite(values)
            count = len(np.unique(np.asarray(table["id"][mine])[known]))
            low, high = (values[known].min(), values[known].max()) if count else (math.nan, math.nan)
            found[target, label] = Stars(count=count, low=float(low), high=float(high))
    return found
