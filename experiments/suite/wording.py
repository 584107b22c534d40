"""Sentences about numbers with intervals: what is larger, what is significant."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.suite.frame import Row, figure_of
from specjax.report.results import value_and_interval


def significance(row: Mapping[str, Any], name: str) -> int:
    """Return 1 or -1 if the interval of a number lies above or below zero, else 0.

    >>> significance({"gain": 0.1, "gain_lo": 0.02, "gain_hi": 0.2}, "gain")
    1
    """
    low, high = row.get(f"{name}_lo", math.nan), row.get(f"{name}_hi", math.nan)
    return 1 if low > 0 else -1 if high < 0 else 0


def change(row: Mapping[str, Any], name: str = "sigma_gain", unit: str = "dex") -> str:
    """Say how a gain in scatter changes it.

    >>> change({"sigma_gain": -0.02, "sigma_gain_lo": -0.03, "sigma_gain_hi": -0.01})
    'larger by 0.020 [0.010, 0.030] dex'
    >>> change({"sigma_gain": 0.02, "sigma_gain_lo": -0.01, "sigma_gain_hi": 0.03})
    'smaller by 0.020 [-0.010, 0.030] dex (not significant)'
    """
    gain, low, high = (row.get(f"{name}{end}", math.nan) for end in ("", "_lo", "_hi"))
    word, ends = ("smaller", (low, high)) if gain >= 0 else ("larger", (-high, -low))
    by = {name: abs(gain), f"{name}_lo": ends[0], f"{name}_hi": ends[1]}
    text = f"{word} by {value_and_interval(by, name)} {unit}".rstrip()
    return text if significance(row, name) else f"{text} (not significant)"


def smallest(rows: Iterable[Row], value: str = "sigma") -> Row:
    """Return the row with the smallest finite value.

    Raises:
        ValueError: there is none.
    """
    return min((row for row in rows if math.isfinite(row[value])), key=lambda row: float(row[value]))


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def against_baseline(row: Row) -> str:
    """Say how a row compares with the strongest baseline beside it, if there is one."""
    if not row.get("baseline"):
        return ""
    baseline = figure_of(row, "baseline_sigma")
    return f"the strongest baseline, {row['baseline']}, has {baseline}"
