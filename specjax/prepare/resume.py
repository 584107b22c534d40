"""The folder of parts of an unfinished run, and the check that a later run may resume it."""

import json
from pathlib import Path
from typing import Any

from specjax.atomic import atomic_file
from specjax.errors import ConfigError

PLAN = "plan.json"
"""The file of the record in the folder of parts."""


def parts_folder(out: Path) -> Path:
    """Return the folder of the parts of the file `out`."""
    return out.with_name(f".{out.name}.parts")


def begin_or_resume(folder: Path, record: dict[str, Any]) -> None:
    """Make the folder of parts, or check that the unfinished run in it has the same record.

    Args:
        folder: the folder of parts.
        record: version, options and stamps, everything that the parts depend on, for JSON.

    Raises:
        ConfigError: the unfinished run differs; the message names the first difference.
    """
    check_resumable(folder, record)
    if not (folder / PLAN).exists():
        with atomic_file(folder / PLAN) as temporary:
            temporary.write_text(json.dumps(record))


def check_resumable(folder: Path, record: dict[str, Any]) -> None:
    """Check that an unfinished run in the folder, if there is one, has the same record.

    Raises:
        ConfigError: it differs; the message names the first difference.
    """
    if found := unfinished(folder, record):
        raise ConfigError(f"{folder} holds an unfinished run that differs: {found}. Remove it to start over")


def unfinished(folder: Path, record: dict[str, Any]) -> str:
    """Describe the first difference of an unfinished run to a record; "" if there is none, or no run."""
    plan = folder / PLAN
    try:
        return difference(json.loads(plan.read_text()), record) if plan.exists() else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {PLAN} is damaged"


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Describe the first difference between two records; "" if they are equal."""
    if old.get("version") != new["version"]:
        return "it was started by another version of specjax"
    options = {**new["options"], **old["options"]}
    for name in options:
        before, now = old["options"].get(name), new["options"].get(name)
        if before != now:
            return f"{name} was {before} and is now {now}"
    for path in sorted({*old["stamps"], *new["stamps"]}):
        before, now = old["stamps"].get(path), new["stamps"].get(path)
        if before != now:
            change = "is new" if before is None else "is no longer given" if now is None else "changed"
            return f"{path} {change}"
    return ""
