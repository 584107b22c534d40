"""The JSON file of a run: its sections with their rows, and where and when each was measured."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import DevicePeaks, Row
from specjax.atomic import atomic_file

VERSION = 2


@dataclasses.dataclass(kw_only=True)
class Section:
    """The rows of a section.

    Attributes:
        environment: what `environment.describe` says.
        options: sizes and precision, which another run must share to add to this one.
        peaks: of the device, measured in the same run.
        rows: the rows.
        finished: all rows are there.
    """

    environment: dict[str, Any]
    options: dict[str, Any]
    peaks: DevicePeaks
    rows: list[Row] = dataclasses.field(default_factory=list)
    finished: bool = False


Sections = dict[str, Section]


def write(path: Path, sections: Sections) -> None:
    """Write all sections, including the times of single calls."""
    entries = {}
    for letter in sorted(sections):
        section = sections[letter]
        rows = [_entry(row, section.peaks) for row in section.rows]
        entries[letter] = {**dataclasses.asdict(section), "rows": rows}
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps({"version": VERSION, "sections": entries}, indent=1) + "\n")


def read(path: Path) -> Sections:
    """Read what `write` has written.

    Raises:
        ValueError: the file is of another version.
    """
    whole = json.loads(path.read_text())
    if whole.get("version") != VERSION:
        raise ValueError(f"{path} was written by another version of the benchmarks: measure anew")
    return {letter: _section(letter, entry) for letter, entry in whole["sections"].items()}


def rows_of(sections: Sections) -> list[Row]:
    """Return the rows of all sections, in order."""
    return [row for letter in sorted(sections) for row in sections[letter].rows]


def kept(path: Path, options: dict[str, Any], redone: Sequence[str]) -> Sections:
    """Return the finished sections of an earlier run with the same options, without those that are redone.

    Raises:
        ValueError: a section was measured with other options.
    """
    sections = read(path) if path.exists() else {}
    found = {
        letter: section for letter, section in sections.items() if section.finished and letter not in redone
    }
    for letter, section in found.items():
        if section.options != options:
            names = [name for name in options if section.options.get(name) != options[name]]
            raise ValueError(f"section {letter} of {path} was measured with another {', '.join(names)}")
    return found


def _section(letter: str, entry: dict[str, Any]) -> Section:
    names = {field.name for field in dataclasses.fields(Row)}
    rows = [
        Row(**{name: value for name, value in row.items() if name in names and value is not None})
        for row in entry["rows"]
    ]
    return Section(**{**entry, "rows": rows, "peaks": DevicePeaks(**entry["peaks"])})


def _entry(row: Row, peaks: DevicePeaks) -> dict[str, Any]:
    """Return a row for JSON, with what follows from it, for other readers of the file."""
    derived = {
        "median": {side: row.median(side) for side in row.times},
        "ratio": {side: row.ratio(side) for side in row.times},
        "floor": row.floor(peaks),
    }
    return {name: _without_nan(value) for name, value in {**dataclasses.asdict(row), **derived}.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
