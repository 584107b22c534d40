"""Intervals of a label from the residuals of stars that the training has not seen.

The score of a calibration star is its absolute residual divided by a scale (`scale.Scale`), and an interval
is the prediction plus and minus a conformal quantile of the scores times the scale of the new star:
normalised conformal prediction. The scale of a calibration star is fitted to the other stars, in `FOLDS`
parts, because the scores would otherwise be too small.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from specjax.calibration.conformal import conformal_quantile, group_quantiles
from specjax.calibration.scale import Scale, fit_scale, with_known
from specjax.typing import FloatArray, IntArray

VERSION = 1
LEVELS = (0.68, 0.95)
FOLDS = 10
FEWEST = 10
"""Fewest calibration stars; with fewer there are no intervals."""

FEWEST_OF_GROUP = 40
"""Fewest calibration stars of each group for quantiles by group. The quantile for 95% of 40 scores is the
39th; that of 19 to 39 would be the largest, or nearly so, and wide."""

EDGES: Mapping[str, tuple[float, ...]] = {"fe_h": (-1.0,)}
"""Borders of the groups, predicted labels, by label."""

SUFFIXES = ("_err", "_lo", "_hi", "_lo95", "_hi95")


class Intervals(NamedTuple):
    """Intervals of n stars, each (n,).

    Attributes:
        err: half the width of the interval of 68%.
        lo: its lower end.
        hi: its upper end.
        lo95: lower end of the interval of 95%.
        hi95: its upper end.
    """

    err: FloatArray
    lo: FloatArray
    hi: FloatArray
    lo95: FloatArray
    hi95: FloatArray

    def columns(self, label: str) -> dict[str, FloatArray]:
        """Return the columns of a table, LABEL_err to LABEL_hi95."""
        return {f"{label}{suffix}": values for suffix, values in zip(SUFFIXES, self, strict=True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns a prediction into intervals.

    Attributes:
        scale: typical size of a residual.
        factors: (groups, levels) quantiles of the scores.
        edges: predicted labels that separate the groups.
        counts: calibration stars of each group.
        grouped: whether the groups have quantiles of their own.
        label_errors: True if the errors of the literature labels were known. The intervals are then for the
            true label, otherwise for the label as the literature gives it.
        extrapolated: True if the stars were too few for a conformal quantile of 95%, see `_beyond`.
    """

    scale: Scale
    factors: tuple[tuple[float, ...], ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    grouped: bool
    label_errors: bool
    extrapolated: bool

    def intervals(
        self,
        predicted: FloatArray,
        snr: FloatArray | None = None,
        *,
        spread: FloatArray | None = None,
        label_error: FloatArray | None = None,
    ) -> Intervals:
        """Return the intervals of n predictions; NaN where a prediction is NaN.

        Args:
            predicted: (n,) predicted labels.
            snr: (n,) S/N per pixel, NaN where unknown.
            spread: (n,) standard deviations over seeds, if the calibration had them.
            label_error: (n,) errors of literature labels. The intervals then contain these labels, which
                scatter about the true ones.
        """
        scale = with_known(self.scale(predicted, snr), quadrature(spread, label_error))
        half, half95 = (np.array(self.factors)[groups_of(predicted, self.edges)] * scale[:, None]).T
        return Intervals(half, predicted - half, predicted + half, predicted - half95, predicted + half95)

    @property
    def summary(self) -> str:
        """What the intervals are for, and how many stars they rest on, as metadata of a table."""
        what = "true" if self.label_errors else "literature"
        return f"of the {what} label, calibrated on {sum(self.counts)} stars"

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON types, with the version of this description."""
        return {"version": VERSION, **dataclasses.asdict(self), "scale": self.scale.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Self | None:
        """Return the calibration that `to_json` described; None if there is none or of another version."""
        if not content or content.get("version") != VERSION:
            return None
        given = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        tuples = {name: tuple(given[name]) for name in ("edges", "counts")}
        factors = tuple(tuple(map(float, row)) for row in given["factors"])
        return cls(**given | tuples | {"factors": factors, "scale": Scale.from_json(given["scale"])})


def groups_of(predicted: FloatArray, edges: Sequence[float]) -> IntArray:
    """Return the group (n,) of each prediction: the number of edges that it is not below."""
    groups: IntArray = np.searchsorted(np.asarray(edges, np.float64), predicted, side="right")
    return np.minimum(groups, len(edges))  # NaN is beyond all edges


def calibrate(
    predicted: FloatArray,
    truth: FloatArray,
    *,
    snr: FloatArray | None = None,
    spread: FloatArray | None = None,
    label_error: FloatArray | None = None,
    edges: Sequence[float] = (),
) -> Calibration | None:
    """Calibrate on n stars that the predicting model has not seen.

    Args:
        predicted: (n,) predicted labels, in random order.
        truth: (n,) literature labels.
        snr: (n,) S/N per pixel, NaN where unknown.
        spread: (n,) standard deviations of the predictions over seeds, for a mean over seeds.
        label_error: (n,) errors of the literature labels, 0 where unknown; None if all are.
        edges: predicted labels that separate groups.

    Returns:
        The calibration; None for fewer than `FEWEST` stars with a finite prediction.
    """
    finite = np.isfinite(predicted) & np.isfinite(truth)
    if finite.sum() < FEWEST:
        return None
    predicted, truth = predicted[finite], truth[finite]
    known = quadrature(spread, label_error)
    snr, known = (None if each is None else each[finite] for each in (snr, known))
    scores = cross_scores(predicted, truth, snr=snr, known=known)
    groups = groups_of(predicted, edges)
    counts = np.bincount(groups, minlength=len(edges) + 1)
    factors = [
        group_quantiles(scores, groups, level, count=len(counts), fewest=FEWEST_OF_GROUP) for level in LEVELS
    ]
    extrapolated = not np.isfinite(conformal_quantile(scores, LEVELS[-1]))
    if extrapolated:
        factors[-1] = np.full(len(counts), _beyond(scores))
    return Calibration(
        scale=fit_scale(predicted, truth - predicted, snr=snr, known=known),
        factors=tuple(zip(*(each.tolist() for each in factors), strict=True)),
        edges=tuple(edges),
        counts=tuple(counts.tolist()),
        grouped=len(counts) > 1 and int(counts.min()) >= FEWEST_OF_GROUP,
        label_errors=label_error is not None,
        extrapolated=extrapolated,
    )


def quadrature(*errors: FloatArray | None) -> FloatArray | None:
    """Return the quadrature sum (n,) of those errors that are given, None if none is; NaN counts as 0."""
    given = [np.nan_to_num(each) for each in errors if each is not None]
    return None if not given else np.sqrt(sum(each**2 for each in given))


def cross_scores(
    predicted: FloatArray,
    truth: FloatArray,
    *,
    snr: FloatArray | None = None,
    known: FloatArray | None = None,
) -> FloatArray:
    """Return the scores (n,), each with a scale that was fitted to the other nine tenths of the stars."""
    residual, scores = truth - predicted, np.empty(len(predicted))
    fold = np.arange(len(predicted)) % FOLDS
    for number in range(FOLDS):
        fitted, left_out = fold != number, fold == number

        def part(values: FloatArray | None, rows: Any) -> FloatArray | None:
            return None if values is None else values[rows]

        scale = fit_scale(
            predicted[fitted],
            residual[fitted],
            snr=part(snr, fitted),
            known=part(known, fitted),
        )
        size = with_known(scale(predicted[left_out], part(snr, left_out)), part(known, left_out))
        scores[left_out] = np.abs(residual[left_out]) / size
    return scores


def _beyond(scores: FloatArray) -> float:
    """Return a factor for 95% where the stars are too few for one of their scores.

    The quantile for 68% times the ratio of both of Student's t distribution with three degrees of freedom, or
    the largest score if that is larger.
    """
    ratio = 3.182 / 1.189  # two-sided 95% and 68% quantiles
    return max(ratio * conformal_quantile(scores, LEVELS[0]), float(scores.max()))
