"""The typical size of a residual as a function of the predicted label and of the S/N.

log s = b0 + b1 z + b2 t, with z the predicted label and t the logarithm of the S/N, both standardised over
the calibration stars. Residuals follow Student's t distribution with `FREEDOM` degrees of freedom, and b1 and
b2 are drawn towards 0, a constant scale, by a normal prior of width `PRIOR`: seventy stars can show a trend,
but not its details. Known contributions to a residual, which are the error of its label and the spread of the
prediction over seeds, are added in quadrature, so that s is what remains.

Form and prior were chosen by the coverage of out-of-fold predictions (docs/uncertainties.md).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from specjax.typing import FloatArray

FREEDOM = 4.0
PRIOR = 0.5
REACH = 2.5
"""The scale is constant beyond this many standard deviations of the predicted label and of the S/N."""

_NORMAL = 0.8708  # a normal error has this scale of a t distribution: then 68% are within the same distance
_BROAD = 3.0  # prior of b0, which has an effect only where known errors explain all residuals
_FLAT = 0.05  # standard deviation of ln(S/N) below which there is no trend to be learned
_FLOOR = 1e-6  # of the scale, relative to the range of labels: residuals may all be 0
_STEPS = 50
_Values = tuple[float, FloatArray, FloatArray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The fitted scale.

    Attributes:
        centre: mean of the predicted labels.
        width: their standard deviation.
        log_snr: median of ln(S/N); None if the S/N was unknown or the same for all stars.
        log_snr_width: its standard deviation.
        coefficients: b0, b1 and, with an S/N, b2.
    """

    centre: float
    width: float
    log_snr: float | None = None
    log_snr_width: float = 1.0
    coefficients: tuple[float, ...] = (0.0, 0.0)

    def __call__(self, predicted: FloatArray, snr: FloatArray | None = None) -> FloatArray:
        """Return the scale (n,), in the unit of the label; a spectrum of unknown S/N has the median one."""
        result: FloatArray = np.exp(self.terms(predicted, snr) @ np.array(self.coefficients))
        return result

    def terms(self, predicted: FloatArray, snr: FloatArray | None = None) -> FloatArray:
        """Return 1, z and, with an S/N, t: (n, 2) or (n, 3)."""
        z = np.clip((predicted - self.centre) / self.width, -REACH, REACH)
        columns = [np.ones(len(z)), z]
        if self.log_snr is not None:
            columns.append(np.zeros(len(z)) if snr is None else self._log_snr(snr))
        return np.stack(columns, axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON types."""
        return dataclasses.asdict(self) | {"coefficients": list(self.coefficients)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the scale that `to_json` described."""
        return cls(**{**content, "coefficients": tuple(content["coefficients"])})

    def _log_snr(self, snr: FloatArray) -> FloatArray:
        known = np.isfinite(snr) & (snr > 0)
        t = (np.log(np.where(known, snr, 1.0)) - (self.log_snr or 0.0)) / self.log_snr_width
        return np.where(known, np.clip(t, -REACH, REACH), 0.0)


def fit_scale(
    predicted: FloatArray,
    residual: FloatArray,
    *,
    snr: FloatArray | None = None,
    known: FloatArray | None = None,
) -> Scale:
    """Fit the scale to calibration stars by the maximum of the posterior density.

    Args:
        predicted: (n,) predicted labels.
        residual: (n,) literature minus predicted labels.
        snr: (n,) S/N per pixel, NaN where unknown.
        known: (n,) standard deviations of known normal contributions to the residuals.
    """
    log_snr, log_snr_width = _snr_range(snr)
    start = Scale(
        centre=float(predicted.mean()),
        width=float(predicted.std()) or 1.0,
        log_snr=log_snr,
        log_snr_width=log_snr_width,
    )
    terms = start.terms(predicted, snr)
    floor = _FLOOR * start.width
    variance = np.zeros(len(residual)) if known is None else (_NORMAL * known) ** 2
    variance = variance + floor**2
    typical = np.log(max(1.4826 * float(np.median(np.abs(residual))), floor))
    precision = np.full(terms.shape[1], PRIOR**-2)
    precision[0] = _BROAD**-2
    prior = np.zeros(terms.shape[1])
    prior[0] = typical
    posterior = functools.partial(
        _posterior, terms=terms, residual=residual, variance=variance, prior=prior, precision=precision
    )
    found = _maximise(posterior, prior)
    return dataclasses.replace(start, coefficients=tuple(found.tolist()))


def with_known(scale: FloatArray, known: FloatArray | None) -> FloatArray:
    """Return the scale (n,) of residuals to which these normal errors (n,) contribute."""
    result: FloatArray = scale if known is None else np.hypot(scale, _NORMAL * known)
    return result


def _snr_range(snr: FloatArray | None) -> tuple[float | None, float]:
    """Return median and standard deviation of ln(S/N); (None, 1) if it is unknown or all the same."""
    if snr is None:
        return None, 1.0
    known = np.log(snr[np.isfinite(snr) & (snr > 0)])
    if len(known) < len(snr) / 2 or not known.std() > _FLAT:
        return None, 1.0
    return float(np.median(known)), float(known.std())


def _maximise(posterior: Callable[[FloatArray], _Values], start: FloatArray) -> FloatArray:
    """Return the coefficients (k,) of the largest posterior density, by Fisher scoring with halved steps."""
    b, (cost, gradient, information) = start, posterior(start)
    for _ in range(_STEPS):
        step = np.linalg.solve(information, gradient)
        step /= max(1.0, float(np.abs(step).max()))
        for _ in range(_STEPS):
            tried = posterior(b - step)
            if tried[0] <= cost:
                break
            step /= 2.0
        if not tried[0] < cost:
            break
        b, (cost, gradient, information) = b - step, tried
    return b


def _posterior(
    b: FloatArray,
    *,
    terms: FloatArray,
    residual: FloatArray,
    variance: FloatArray,
    prior: FloatArray,
    precision: FloatArray,
) -> _Values:
    """Return minus the log of the posterior density, its gradient (k,) and its expected curvature (k, k)."""
    model = np.exp(2.0 * terms @ b)
    total = model + variance
    u = residual**2 / total / FREEDOM
    share = model / total  # derivative of ln sqrt(total) with respect to ln s
    cost = 0.5 * np.log(total).sum() + 0.5 * (FREEDOM + 1.0) * np.log1p(u).sum()
    slope = share * (1.0 - (FREEDOM + 1.0) * u / (1.0 + u))
    weight = share**2 * 2.0 * FREEDOM / (FREEDOM + 3.0)
    offset = b - prior
    return (
        float(cost + 0.5 * (precision * offset**2).sum()),
        terms.T @ slope + precision * offset,
        (terms * weight[:, None]).T @ terms + np.diag(precision),
    )
