"""Labels of simulated stars: their order, the features that the emulator computes with, and its domain."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from specjax.typing import AnyArray, BoolArray, FloatArray, Tree

LABELS = ("teff", "logg", "fe_h", "alpha_fe", "vmicro")
"""Columns of an array of labels (n, 5): K, dex, dex, dex, km/s."""

VMICRO_MARGIN = 0.5
"""Largest departure in km/s from `microturbulence`; the grid has a scatter of 0.2 km/s."""

_HULLS = (("teff", "logg", "fe_h"), ("fe_h", "alpha_fe"))
_TOLERANCE = 1e-6  # of standardised labels: the stars that span a hull are inside


def features(labels: Any, numpy: ModuleType) -> Any:
    """Return labels (..., 5) with 5040 K / Teff in place of Teff, in which spectra change more evenly.

    `numpy` is the module to compute with, NumPy or jax.numpy.
    """
    return numpy.concatenate([5040.0 / labels[..., :1], labels[..., 1:]], axis=-1)


def microturbulence(teff: Any, logg: Any, fe_h: Any, *, numpy: ModuleType = np) -> Any:
    """Return the microturbulence in km/s that goes with Teff (K), log g and [Fe/H].

    The relation is that of the Gaia-ESO survey for MARCS models (Smiljanic et al. 2014, A&A 570, A122), in
    which dwarfs below 5000 K have the value of 5000 K; it is limited to 0.5-4.5 km/s. `numpy` is the module
    to compute with, NumPy or jax.numpy.
    """
    teff, logg, fe_h = (numpy.asarray(value, dtype=float) for value in (teff, logg, fe_h))
    dwarf = logg >= 3.5
    warm = numpy.where(dwarf, numpy.maximum(teff, 5000.0), teff) - 5500.0
    gravity = logg - 4.0
    common = -0.14 * gravity - 0.005 * gravity**2 + 0.05 * fe_h + 0.01 * fe_h**2
    low = 1.05 + 2.51e-4 * warm + 1.5e-7 * warm**2
    high = 1.25 + 4.01e-4 * warm + 3.1e-7 * warm**2
    return numpy.clip(numpy.where(dwarf, low, high) + common, 0.5, 4.5)


def as_text(labels: FloatArray) -> str:
    """Return the labels (5,) of a star for a message."""
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(LABELS, labels, strict=True))


@dataclass(frozen=True)
class Domain:
    """The labels that a grid of spectra covers.

    They are inside the convex hulls of (5040 K / Teff, log g, [Fe/H]) and of ([Fe/H], [alpha/Fe]), and their
    microturbulence is within `VMICRO_MARGIN` of the relation. A hull of all five labels would leave out a
    large part of what a grid of one or two thousand spectra covers.

    Attributes:
        mean: (5,) of the features of the grid.
        std: (5,) likewise.
        planes: for each hull, (m, k + 1) normals and offsets of its faces in standardised features.
    """

    mean: FloatArray
    std: FloatArray
    planes: tuple[FloatArray, ...]

    @classmethod
    def around(cls, labels: FloatArray) -> "Domain":
        """Return the domain of a grid with labels (n, 5)."""
        values = features(labels, np)
        mean, std = values.mean(axis=0), values.std(axis=0)
        standard = (values - mean) / std
        return cls(mean, std, tuple(ConvexHull(standard[:, _columns(names)]).equations for names in _HULLS))

    @classmethod
    def from_arrays(cls, arrays: Tree) -> "Domain":
        """Rebuild from `to_arrays`."""
        return cls(arrays["mean"], arrays["std"], tuple(arrays[_key(names)] for names in _HULLS))

    def to_arrays(self) -> Tree:
        """Return the arrays to store."""
        planes = {_key(names): planes for names, planes in zip(_HULLS, self.planes, strict=True)}
        return {"mean": self.mean, "std": self.std, **planes}

    def faces(self) -> FloatArray:
        """Return the faces of both hulls, (m, 6): a star is inside if features @ face[:5] + face[5] <= 0."""
        blocks = []
        for names, planes in zip(_HULLS, self.planes, strict=True):
            block = np.zeros((len(planes), len(LABELS) + 1))
            block[:, [*_columns(names), -1]] = planes
            blocks.append(block)
        return np.concatenate(blocks)

    def contains(self, labels: FloatArray) -> BoolArray:
        """Return (n,) bool for labels (n, 5); labels that are not finite are outside."""
        return np.asarray(self.outside(labels) == "")

    def outside(self, labels: FloatArray) -> AnyArray:
        """Return (n,) strings that name the labels outside of the domain, "" for stars inside."""
        labels = np.asarray(labels, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            standard = (features(labels, np) - self.mean) / self.std
            found = np.full(len(labels), "", dtype="<U32")
            near = np.abs(labels[:, 4] - microturbulence(*labels.T[:3])) <= VMICRO_MARGIN
            found[~near] = "vmicro"
            for names, planes in zip(reversed(_HULLS), reversed(self.planes), strict=True):
                distance = standard[:, _columns(names)] @ planes[:, :-1].T + planes[:, -1]
                found[~(distance <= _TOLERANCE).all(axis=1)] = ", ".join(names)
        return found


def _columns(names: tuple[str, ...]) -> list[int]:
    return [LABELS.index(name) for name in names]


def _key(names: tuple[str, ...]) -> str:
    return "hull_" + "_".join(names)
