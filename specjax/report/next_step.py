"""The command that uses the best adapters of a run."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.report.results import Row

ADAPTERS = "adapters"
"""The folder of adapters in a run folder."""


def best_adapter(folder: Path, rows: Sequence[Row]) -> Path | None:
    """Return the adapters of the first target with the smallest scatter; None if the run has none.

    Several labels are compared by the product of their scatters, which does not depend on units.

    Args:
        folder: of the run.
        rows: of its table.json.
    """
    found: dict[Path, list[float]] = {}
    for row in rows:
        path = folder / ADAPTERS / row["target"] / row["configuration"]
        if row["subset"] == "all" and row["target"] == rows[0]["target"] and path.is_dir():
            found.setdefault(path, []).append(math.log(max(row["sigma"], 1e-12)))
    return min(found, key=lambda path: _mean(found[path]), default=None)


def _mean(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else math.inf


def predict_command(adapter: Path, config: Mapping[str, Any]) -> str:
    """Return a command line that predicts with adapters, ready to be copied but for the spectra.

    Args:
        adapter: their folder, as it is to be named.
        config: content of the run's config.json, which names the model.
    """
    model = str(config.get("model") or "mini")
    options = [] if model == "mini" else ["--model", model]
    words = ["specjax", "predict", *options, "--adapter", str(adapter), "SPECTRA", "-o", "predicted.fits"]
    return shlex.join(words)
