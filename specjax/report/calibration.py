"""The calibration table of a run: coverage, width and CRPS of the intervals of test stars, by subset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specjax.calibration.calibration import LEVELS, Intervals
from specjax.calibration.scoring import covered, normal_crps
from specjax.plurals import counted
from specjax.report import intervals as bootstrap
from specjax.report.metrics import subset_masks
from specjax.report.results import Row
from specjax.typing import AnyArray, BoolArray, FloatArray, IntArray

MEAN_INTERVALS = (
    "predictions are means over seeds, with narrower intervals, which are calibrated on the same test stars"
    " and not tested here: docs/uncertainties.md says how far they can be trusted"
)
"""What to keep in mind about the coverage of single seeds."""

_RANGE = 1.2  # S/N of the best third over that of the worst, below which thirds are not told apart


def calibration_rows(
    *,
    truth: FloatArray,
    predicted: FloatArray,
    intervals: Intervals,
    stars: AnyArray,
    subsets: Mapping[str, BoolArray],
) -> list[Row]:
    """Score intervals: one row per subset that has stars.

    Args:
        truth: (S, c) literature labels of the test stars of S seeds.
        predicted: (S, c) predictions.
        intervals: their intervals, each (S, c); rows of NaN are left out.
        stars: (S, c) identifiers.
        subsets: (S, c) masks by name.

    Returns:
        Rows with subset, n_predictions, n_stars (distinct); coverage68 and coverage95, each with the ends _lo
        and _hi of a 95% interval from a bootstrap over stars; width68 and width95, the mean widths; and crps,
        the mean of `normal_crps` with the standard deviation err.
    """
    known, rows = np.isfinite(intervals.err) & np.isfinite(predicted), []
    for name, mask in subsets.items():
        chosen = mask & known
        if chosen.any():
            part = Intervals(*(values[chosen] for values in intervals))
            rows.append({"subset": name, **_scored(truth[chosen], predicted[chosen], part, stars[chosen])})
    return rows


def _scored(
    truth: FloatArray, predicted: FloatArray, intervals: Intervals, stars: AnyArray
) -> dict[str, Any]:
    """Score (n,) predictions of one subset."""
    distinct, index = np.unique(stars, return_inverse=True)
    row: dict[str, Any] = {"n_predictions": len(truth), "n_stars": len(distinct)}
    weights = bootstrap.star_weights(len(distinct))
    for level, inside in zip(LEVELS, covered(truth, intervals), strict=True):
        name = f"coverage{100 * level:.0f}"
        row[name] = float(inside.mean())
        row[f"{name}_lo"], row[f"{name}_hi"] = _interval(inside, index, weights)
    row["width68"] = float((intervals.hi - intervals.lo).mean())
    row["width95"] = float((intervals.hi95 - intervals.lo95).mean())
    row["crps"] = float(normal_crps(truth, predicted, np.maximum(intervals.err, 1e-12)).mean())
    return row


def _interval(inside: BoolArray, index: IntArray, weights: IntArray) -> tuple[float, float]:
    """Return a 95% interval of the fraction of predictions that are inside, over samples of stars."""
    covered_by_star = np.bincount(index, inside, minlength=weights.shape[1])
    tests_by_star = np.bincount(index, minlength=weights.shape[1])
    samples = (weights @ covered_by_star) / (weights @ tests_by_star)
    return bootstrap.bootstrap_interval(samples, float(inside.mean()))


def calibration_subsets(
    *, fe_h: FloatArray, predicted: FloatArray, snr: FloatArray, edges: Sequence[float], symbol: str
) -> dict[str, BoolArray]:
    """Return masks (S, c): all, by literature [Fe/H], by predicted label, and by thirds of the known S/N."""
    masks = subset_masks(fe_h)
    for edge in edges:
        masks |= {
            f"predicted {symbol}>={edge:g}": predicted >= edge,
            f"predicted {symbol}<{edge:g}": predicted < edge,
        }
    known = snr[np.isfinite(snr)]
    low, high = np.quantile(known, [1 / 3, 2 / 3]) if known.size else (np.nan, np.nan)
    if high > _RANGE * low:
        masks |= {
            f"snr<{low:.3g}": snr < low,
            f"{low:.3g}<=snr<{high:.3g}": (snr >= low) & (snr < high),
            f"snr>={high:.3g}": snr >= high,
        }
    return masks


def calibration_lines(scores: Sequence[Row], calibration: Sequence[Row]) -> list[str]:
    """Return one line per adapted configuration on the coverage of its intervals.

    Args:
        scores: rows of table.json.
        calibration: rows of calibration.json.
    """
    adapted = {_names(row) for row in scores if row["kind"] == "adapted"}
    several = len({row.get("label") for row in scores}) > 1
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in calibration:
        found.setdefault(_names(row), {})[row["subset"]] = row
    return [
        _line(f"{target}/{label}" if several else target, configuration, rows)
        for (target, label, configuration), rows in found.items()
        if (target, label, configuration) in adapted
    ]


def _names(row: Row) -> tuple[str, str, str]:
    return row["target"], row.get("label", ""), row["configuration"]


def _line(target: str, configuration: str, rows: Mapping[str, Row]) -> str:
    """State the coverage of all stars, and of the metal-poor ones if there are any."""
    percents = _percents(rows["all"])
    text = f"{target}: {configuration}: the 68% and 95% intervals of single seeds contain {percents} of the"
    text += " test labels"
    poor = rows.get("fe_h<-1")
    if poor is None:
        return text
    return f"{text}, below [Fe/H] = -1 {_percents(poor)} ({counted(poor['n_stars'], 'star')})"


def _percents(row: Mapping[str, Any]) -> str:
    values = [[100 * row[f"coverage{level}{end}"] for end in ("", "_lo", "_hi")] for level in (68, 95)]
    return " and ".join(f"{value:.0f}% [{low:.0f}, {high:.0f}]" for value, low, high in values)
