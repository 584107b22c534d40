"""What a reader of a run should know before trusting its numbers, from the files of its folder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from specjax.flags import count_flags
from specjax.plurals import counted
from specjax.report.metrics import SUBSETS
from specjax.report.results import HEADINGS, Row, value_and_interval

_FEW = 30  # test stars, below which a scatter is uncertain by more than an eighth


def cautions(rows: Sequence[Row], config: Mapping[str, Any], calibration: Sequence[Row]) -> list[str]:
    """Return one sentence per concern.

    They are labels that the predictions of the model as it is do not follow, spectra that were flagged, stars
    outside the training range, configurations that are worse than the model as it is, baselines that are
    better than every configuration, scores of few stars, and 68% intervals that contain too few or too many
    labels.

    Args:
        rows: of table.json.
        config: content of config.json.
        calibration: rows of calibration.json; none if there is no such file.
    """
    doubts = config.get("doubts")
    lines = [f"{line}." for line in doubts] if isinstance(doubts, list) else []
    lines += _about_spectra(config)
    for found in groups(rows).values():
        lines += _about_scores([row for row in found if row["subset"] == "all"])
        lines += _about_few(found)
    for row in calibration:
        low, high = row.get("coverage68_lo", math.nan), row.get("coverage68_hi", math.nan)
        if row.get("subset") == "all" and (low > 0.68 or high < 0.68):
            name = f"{row.get('target', '')}: {row.get('configuration', '')}"
            share = percent(row, "coverage68")
            lines.append(f"{name}: the 68% intervals contain {share} of the test labels.")
    return lines


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows by target and label."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["target"], row.get("label", "")), []).append(row)
    return found


def is_gain(row: Row) -> bool:
    """Return whether a row was compared with a zero-shot row."""
    low, high = row.get("sigma_gain_lo", math.nan), row.get("sigma_gain_hi", math.nan)
    return bool(row["kind"] == "adapted" and (row.get("sigma_gain", 0) != 0 or low < high))


def direction(row: Row) -> str:
    """Return the class of a gain whose interval excludes zero."""
    if not is_gain(row):
        return ""
    low, high = row.get("sigma_gain_lo", math.nan), row.get("sigma_gain_hi", math.nan)
    return "gain" if low > 0 else "loss" if high < 0 else ""


def percent(row: Row, name: str) -> str:
    """Format a fraction of a row and its interval as percentages; "-" without a value."""
    value, low, high = (100 * row.get(f"{name}{end}", math.nan) for end in ("", "_lo", "_hi"))
    return f"{value:.0f}% [{low:.0f}, {high:.0f}]" if math.isfinite(value) else "-"


def losses(rows: Sequence[Row]) -> list[str]:
    """Return which configurations have a larger scatter of all stars than zero-shot, and how sure that is."""
    lines = []
    for row in rows:
        if row["subset"] != "all" or not is_gain(row) or not row["sigma_gain"] < 0:
            continue
        sure = direction(row) == "loss"
        lines.append(
            f"{row['target']}: {row['configuration']} {'is' if sure else 'may be'} worse than the model as it"
            f" is: its gain in σ is {value_and_interval(row, 'sigma_gain', signed=True)} with"
            f" {counted(row['n_stars'], 'test star')} per split."
        )
    return lines


def _about_spectra(config: Mapping[str, Any]) -> list[str]:
    """Return what was flagged."""
    lines = []
    refused = config.get("refused")
    if isinstance(refused, Mapping) and refused:
        flags = count_flags(map(str, refused.values()))
        lines.append(f"Spectra that were flagged and not used as labelled ones: {flags}.")
    outside = config.get("outside_training")
    for target, stars in outside.items() if isinstance(outside, Mapping) else ():
        if isinstance(stars, Mapping) and stars:
            flags = count_flags(map(str, stars.values()))
            lines.append(f"{target}: labelled stars outside the model's training range: {flags}.")
    return lines


def _about_scores(rows: Sequence[Row]) -> list[str]:
    """Return which configurations are worse than zero-shot, and whether a baseline is best."""
    lines = losses(rows)
    known = [row for row in rows if math.isfinite(row["sigma"])]
    best = min(known, key=lambda row: float(row["sigma"]), default=None)
    if best is not None and best["kind"] == "baseline":
        lines.append(
            f"{best['target']}: the smallest scatter, σ = {value_and_interval(best, 'sigma')}, is that of"
            f" {best['configuration']}, a baseline without the foundation model."
        )
    return lines


def _about_few(rows: Sequence[Row]) -> list[str]:
    """Return where scores rest on few stars."""
    lines = []
    first = next((row for row in rows if row["subset"] == "all"), None)
    if first is not None and first["n_stars"] < _FEW:
        stars = counted(first["n_stars"], "test star")
        lines.append(f"{first['target']}: only {stars} per split; the scores are uncertain.")
    for subset in SUBSETS[1:]:
        pooled = next((row for row in rows if row["subset"] == subset and row.get("pooled")), None)
        if pooled is not None and pooled.get("n_distinct"):
            lines.append(
                f"{pooled['target']}: {counted(pooled['n_distinct'], 'test star')} with {HEADINGS[subset]},"
                " too few to score each split; all splits are pooled there."
            )
    return lines
