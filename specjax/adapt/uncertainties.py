"""Intervals of an adaptation: for the test stars of each seed, and for the mean over seeds that is deployed.

Each seed is calibrated on its own training and validation stars, as a candidate predicts them that has not
seen them and that the other stars have selected. The mean over seeds is calibrated on the mean over seeds of
such predictions: those of a star are out of fold for the seeds that train on it, and ordinary ones for all
other seeds.
"""

from collections.abc import Sequence

import numpy as np

from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.calibration.calibration import (
    EDGES,
    FEWEST_OF_GROUP,
    Calibration,
    Intervals,
    calibrate,
)
from specjax.report.calibration import calibration_rows, calibration_subsets
from specjax.report.results import Row
from specjax.spectra import Spectra
from specjax.surveys.io.snr import median_snr
from specjax.typing import FloatArray, IntArray
from specjax.units import symbol_and_unit


def signal_to_noise(lamost: Spectra) -> FloatArray:
    """Return the median S/N per pixel (n,) of spectra on the model grid; NaN without inverse variances."""
    if not lamost.has_ivar:
        return np.full(len(lamost), np.nan)
    return median_snr(lamost.flux, lamost.ivar, lamost.valid)


def calibrate_seeds(target: Target, splits: Splits, result: AdaptationResult) -> list[Calibration | None]:
    """Calibrate each of S seeds on the stars that its training has not seen; None for too few stars."""
    return [
        _calibrated(target, rows, predicted)
        for rows, predicted in zip(splits.unseen, result.unseen, strict=True)
    ]


def calibrate_mean(
    target: Target, splits: Splits, result: AdaptationResult, *, but: IntArray | None = None
) -> Calibration | None:
    """Calibrate the mean over seeds on all labelled stars.

    Args:
        target: the survey, with n labelled stars.
        splits: S splits of them.
        result: of these seeds. Means of seeds and fused adapters keep the predictions of the seeds for stars
            that these have not seen.
        but: rows of stars that are not used, because the intervals are to be tested on them.
    """
    single = result.of_seeds is not None  # one prediction, without a spread
    of_seeds = result.predictions if result.of_seeds is None else result.of_seeds
    values = unseen_of_seeds(splits, of_seeds, result.unseen)
    rows = np.setdiff1d(np.arange(values.shape[1]), [] if but is None else but)
    spread = None if single or len(values) < 2 else values.std(axis=0, ddof=1)[rows]
    return _calibrated(target, rows, values.mean(axis=0)[rows], spread)


def unseen_of_seeds(splits: Splits, predictions: FloatArray, unseen: FloatArray) -> FloatArray:
    """Return what each seed predicts for each star without having seen it, (S, n).

    Args:
        splits: S splits.
        predictions: (S, n) predictions for all stars.
        unseen: (S, a + b) those for the training and validation stars, without having seen them.
    """
    values = predictions.copy()
    np.put_along_axis(values, splits.unseen, unseen, axis=1)
    return values


def intervals_of_seeds(target: Target, splits: Splits, result: AdaptationResult) -> Intervals:
    """Return the intervals (S, c) of each seed's test stars, from the calibration of that seed."""
    calibrations = calibrate_seeds(target, splits, result)
    return _joined(
        [
            intervals_of(target, calibration, rows, predicted[rows])
            for calibration, rows, predicted in zip(
                calibrations, splits.test, result.predictions, strict=True
            )
        ]
    )


def intervals_of_mean(target: Target, splits: Splits, result: AdaptationResult, test: IntArray) -> Intervals:
    """Return the intervals (1, c) of stars that no seed has seen, for the mean of all seeds or the fused one.

    Args:
        target: the survey.
        splits: the splits of all seeds.
        result: see `calibrate_mean`.
        test: (c,) rows of the stars, on which nothing is calibrated.
    """
    calibration = calibrate_mean(target, splits, result, but=test)
    return _joined([intervals_of(target, calibration, test, result.predictions[0][test])])


def intervals_of(
    target: Target, calibration: Calibration | None, rows: IntArray, predicted: FloatArray
) -> Intervals:
    """Return the intervals (c,) of labelled stars; NaN without a calibration.

    They are to contain the literature labels, so that the errors of these are added where they are known.
    """
    if calibration is None:
        return Intervals(*np.full((5, len(rows)), np.nan))
    snr = signal_to_noise(target.labelled[rows])
    return calibration.intervals(predicted, snr, label_error=target.error_of(rows))


def few_stars(target: Target, calibrations: Sequence[Calibration | None]) -> list[str]:
    """Return lines on what the labelled stars are too few for; at most one of each kind."""
    symbol = symbol_and_unit(target.label)[0]
    known = [each for each in calibrations if each is not None]
    lines = []
    if any(each.edges and not each.grouped for each in known):
        edges = " and ".join(f"{edge:g}" for edge in known[0].edges)
        fewest = min(min(each.counts) for each in known)
        lines.append(
            f"{target.name}: only {fewest} calibration stars on one side of predicted {symbol} = {edges}:"
            f" {FEWEST_OF_GROUP} are needed for intervals of their own, and their coverage may be off"
        )
    if any(each.extrapolated for each in known):
        lines.append(
            f"{target.name}: the 95% intervals are extrapolated from {sum(known[0].counts)} calibration stars"
        )
    return lines


def calibration_scores(
    target: Target, splits: Splits, adapted: Sequence[AdaptationResult], intervals: Sequence[Intervals]
) -> list[Row]:
    """Score the intervals (S, c) of the test stars: rows of calibration.json."""
    test = splits.test
    snr = signal_to_noise(target.labelled)[test]
    symbol = symbol_and_unit(target.label)[0]
    rows: list[Row] = []
    for result, each in zip(adapted, intervals, strict=True):
        predicted = np.take_along_axis(result.predictions, test, axis=1)
        subsets = calibration_subsets(
            fe_h=target.fe_h[test],
            predicted=predicted,
            snr=snr,
            edges=EDGES.get(target.label, ()),
            symbol=symbol,
        )
        scored = calibration_rows(
            truth=target.truth[test],
            predicted=predicted,
            intervals=each,
            stars=target.labelled.id[test],
            subsets=subsets,
        )
        about = {"target": target.name, "label": target.label, "configuration": result.configuration.name}
        rows += [{**about, **row} for row in scored]
    return rows


def _calibrated(
    target: Target, rows: IntArray, predicted: FloatArray, spread: FloatArray | None = None
) -> Calibration | None:
    return calibrate(
        predicted,
        target.truth[rows],
        snr=signal_to_noise(target.labelled[rows]),
        spread=spread,
        label_error=target.error_of(rows),
        edges=EDGES.get(target.label, ()),
    )


def _joined(parts: list[Intervals]) -> Intervals:
    return Intervals(*(np.stack(each) for each in zip(*parts, strict=True)))
