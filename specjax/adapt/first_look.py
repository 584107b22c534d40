"""A first look at the labels of a target, before anything is trained on them.

The predictions of the model as it is show whether labels and spectra belong together, and the errors of the
labels decide what the intervals are for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from specjax.adapt.target import Target
from specjax.plurals import counted
from specjax.report.metrics import bias, r2, robust_sigma
from specjax.typing import FloatArray, StrArray
from specjax.units import symbol_and_unit

_UNRELATED = 0.2  # correlation of predictions with labels that 100 unrelated stars reach by chance
_FEWEST = 10  # stars, below which a correlation says nothing


def compare_labels(target: Target, configuration: str, predicted: FloatArray) -> tuple[str, str]:
    """Compare the labels of n stars with what the model as it is predicts for them.

    Args:
        target: the survey.
        configuration: name of the zero-shot configuration.
        predicted: (n,) its predictions.

    Returns:
        A line on their difference; and one on what may be wrong, "" if nothing seems to be.
    """
    truth, count = target.truth, len(target.truth)
    symbol, unit = symbol_and_unit(target.label)
    offset, score = float(bias(truth, predicted)), float(r2(truth, predicted))
    sigma = float(robust_sigma(predicted - truth))
    follows = _correlation(truth, predicted)
    line = (
        f"{target.name}: {configuration} minus labels: {_number(offset, unit, '+')} in the median, scatter"
        f" {_number(sigma, unit)}, R² {score:.2f}, correlation {follows:.2f} ({counted(count, 'star')})"
    )
    if not score < 0:
        return line, ""
    if follows < _UNRELATED and count >= _FEWEST:
        return line, (
            f"{target.name}: the predictions of the model as it is do not follow the {symbol} of the table"
            f" (correlation {follows:.2f}, R² {score:.2f}): unless the spectra are unlike those of the"
            " training, check whether the ids name the same stars in both files, the unit of the labels, and"
            " the unit and medium of the wavelengths"
        )
    if abs(offset) > sigma:
        return line, (
            f"{target.name}: predictions of the model as it is and {symbol} of the table differ by"
            f" {_number(offset, unit, '+')} in the median, more than their scatter (R² {score:.2f}): an"
            " adaptation can correct this if it comes from the spectra, such as a much lower resolution; if"
            " you do not expect it, check the unit of the labels, and the unit and medium of the wavelengths"
        )
    return line, ""


def ignored_errors(label: str, ids: StrArray, truth: FloatArray, error: FloatArray | None, path: Path) -> str:
    """Say which errors of labels (n,) are zero or negative, so that they are taken as unknown; "" if none."""
    if error is None:
        return ""
    odd = np.flatnonzero(np.isfinite(truth) & (error <= 0))
    if not odd.size:
        return ""
    return (
        f"{path}: {label}_err of {counted(len(odd), 'star')} is zero or negative, first of {ids[odd[0]]}"
        f" ({error[odd[0]]:g}): it is taken as unknown"
    )


def meaning_of_intervals(target: Target) -> str:
    """Say whether intervals will be for the true label or for that of the literature."""
    symbol = symbol_and_unit(target.label)[0]
    if target.truth_error is None:
        return (
            f"{target.name}: the intervals will be for {symbol} as the table gives it, with its errors,"
            f" because no {target.label}_err is known"
        )
    known = int((target.truth_error > 0).sum())
    return (
        f"{target.name}: the intervals will be for the true {symbol}, because {target.label}_err is known for"
        f" {known} of {counted(len(target.truth), 'star')}"
    )


def about_labels(
    targets: Sequence[Target], joined: Mapping[str, FloatArray], ids: StrArray, path: Path
) -> list[str]:
    """Return lines on the errors of the labels of all targets, and on what they mean.

    Args:
        targets: one per label.
        joined: labels and their errors LABEL_err, in the order of the spectra.
        ids: of the spectra.
        path: the table of labels.
    """
    lines = []
    for target in targets:
        label = target.label
        lines.append(ignored_errors(label, ids, joined[label], joined.get(f"{label}_err"), path))
        lines.append(meaning_of_intervals(target))
    return [line for line in lines if line]


def _correlation(truth: FloatArray, predicted: FloatArray) -> float:
    """Return Pearson's coefficient; 0 if either does not vary."""
    if min(np.ptp(truth), np.ptp(predicted)) == 0:
        return 0.0
    return float(np.corrcoef(truth, predicted)[0, 1])


def _number(value: float, unit: str, sign: str = "") -> str:
    digits = 0 if unit == "K" else 2
    return f"{value:{sign}.{digits}f} {unit}".strip()
