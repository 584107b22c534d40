"""How well a model of two surveys agrees with itself on pairs: spectra of the same stars from both."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specjax.foundation import Foundation
from specjax.report.intervals import bootstrap_interval, star_weights, weighted_bias, weighted_sigma
from specjax.report.metrics import bias, robust_sigma
from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, Float32Array, FloatArray

_NAMES = {"lamost": "LAMOST", "gaia_xp": "Gaia XP"}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One comparison.

    Attributes:
        what: what is compared.
        value: how well it agrees.
        low: lower end of the 95% interval over stars.
        high: upper end.
        reference: the same number of a method that knows nothing of the star.
        reference_is: what that method is.
        larger_is_better: the sense of the number.
    """

    what: str
    value: float
    low: float
    high: float
    reference: float
    reference_is: str
    larger_is_better: bool = False

    @property
    def holds(self) -> bool:
        """Whether the whole interval is better than the reference."""
        return self.low > self.reference if self.larger_is_better else self.high < self.reference


def compare_pairs(model: Foundation, lamost: Spectra, xp: Spectra) -> list[Agreement]:
    """Compare the spectra that a model makes with those of the same n stars, and find their partners.

    Reconstructed and translated spectra are scored by the mean absolute difference from the observed flux,
    beside that of the mean observed spectrum; the search for the Gaia XP spectrum of each LAMOST one by the
    fraction that is found first, beside chance.

    Raises:
        ModelError: the model lacks a tower or the decoders.
        DataError: the spectra are not on its grids.
    """
    sides = {"lamost": lamost, "gaia_xp": xp}
    found = []
    for source, target in (
        ("lamost", "lamost"),
        ("gaia_xp", "gaia_xp"),
        ("gaia_xp", "lamost"),
        ("lamost", "gaia_xp"),
    ):
        same = source == target
        made = model.reconstruct(sides[source]) if same else model.translate(sides[source], target=target)
        verb = (
            f"{_NAMES[target]} flux reconstructed" if same else f"{_NAMES[target]} flux from {_NAMES[source]}"
        )
        found.append(_flux_error(f"{verb}, mean absolute difference", made, sides[target]))
    return [*found, _retrieval(model.embed(lamost), model.embed(xp), model.config.projection.shared_dim)]


def compare_labels(label: str, first: FloatArray, second: FloatArray) -> list[Agreement]:
    """Compare a label (n,) of the same stars from both surveys: scatter and offset of the difference.

    The reference of the scatter is that of the difference between stars drawn at random.
    """
    difference = first - second
    weights = star_weights(len(difference))
    sigma, offset = float(robust_sigma(difference)), float(bias(first, second))
    shuffled = first - np.roll(second, max(1, len(second) // 2))
    low, high = bootstrap_interval(weighted_sigma(difference, weights), sigma)
    ends = bootstrap_interval(weighted_bias(first, second, weights), offset)
    spread = float(robust_sigma(shuffled))
    return [
        Agreement(
            what=f"{label}, LAMOST against Gaia XP, scatter",
            value=sigma,
            low=low,
            high=high,
            reference=spread,
            reference_is="other stars",
        ),
        Agreement(
            what=f"{label}, Gaia XP minus LAMOST, offset",
            value=offset,
            low=ends[0],
            high=ends[1],
            reference=np.nan,
            reference_is="",
        ),
    ]


def failed(rows: list[Agreement]) -> list[Agreement]:
    """Return the comparisons that are not better than their reference, where they have one."""
    return [row for row in rows if np.isfinite(row.reference) and not row.holds]


def _flux_error(what: str, made: Float32Array, observed: Spectra) -> Agreement:
    valid = observed.valid
    error = _mean_absolute(made - observed.flux, valid)
    mean = np.where(valid, observed.flux, 0).sum(axis=0) / np.maximum(valid.sum(axis=0), 1)
    reference = _mean_absolute(mean - observed.flux, valid)
    low, high = _interval_of_mean(error)
    return Agreement(
        what=what,
        value=float(error.mean()),
        low=low,
        high=high,
        reference=float(reference.mean()),
        reference_is="mean spectrum",
    )


def _retrieval(z: Float32Array, z_xp: Float32Array, shared: int) -> Agreement:
    """Return the fraction of LAMOST vectors (n, d) whose own Gaia XP vector is the most similar of all."""
    a, b = (_unit(vectors[:, :shared]) for vectors in (z, z_xp))
    first = (np.argmax(a @ b.T, axis=1) == np.arange(len(a))).astype(float)
    low, high = _interval_of_mean(first)
    return Agreement(
        what=f"own Gaia XP spectrum found first of {len(a)}, fraction",
        value=float(first.mean()),
        low=low,
        high=high,
        reference=1 / len(a),
        reference_is="chance",
        larger_is_better=True,
    )


def _unit(vectors: AnyArray) -> FloatArray:
    x = vectors.astype(np.float64)
    unit: FloatArray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _mean_absolute(difference: AnyArray, valid: BoolArray) -> FloatArray:
    """Return the mean of |difference| (n, p) over the valid pixels of each star."""
    count = np.maximum(valid.sum(axis=1), 1)
    mean: FloatArray = np.where(valid, np.abs(difference), 0).sum(axis=1, dtype=np.float64) / count
    return mean


def _interval_of_mean(values: FloatArray) -> tuple[float, float]:
    samples = star_weights(len(values)) @ values / len(values)
    return bootstrap_interval(samples, float(values.mean()))


def percentiles(values: Mapping[str, FloatArray]) -> dict[str, tuple[float, float, float]]:
    """Return the percentiles 16, 50 and 84 of each label over stars."""
    found = {name: np.percentile(each, (16, 50, 84)) for name, each in values.items()}
    return {name: (float(a), float(b), float(c)) for name, (a, b, c) in found.items()}
