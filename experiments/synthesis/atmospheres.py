"""MARCS model atmospheres (Gustafsson et al. 2008, A&A 486, 951), interpolated between the computed ones."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.typing import FloatArray

DEPTHS = 56
COLUMNS = ("lg_tau_5000", "temperature", "lg_electron_pressure", "lg_gas_pressure", "depth")
"""Quantities of a model at each depth: K, log10 of dyn/cm2, cm."""

_MARCS_COLUMNS = [2, 4, 5, 6, 3]  # in the tables of the models, in the order of COLUMNS
_ALPHA_TOLERANCE = 0.3  # a model of another [alpha/Fe] stands in where the one with 0 is missing


def model_metallicity(fe_h: float, alpha_fe: float) -> float:
    """Return [Fe/H] of the model of solar [alpha/Fe] that has as many metals (Salaris et al. 1993)."""
    return float(fe_h + np.log10(0.638 * 10**alpha_fe + 0.362))


@dataclass(frozen=True)
class Atmospheres:
    """Models on a grid of labels.

    Attributes:
        axes: Teff (t,) in K, log g (g,) and metallicity (m,), all ascending.
        models: (t, g, m, 56, 5), see `COLUMNS`; NaN where there is no model.
    """

    axes: tuple[FloatArray, FloatArray, FloatArray]
    models: FloatArray

    def at(self, teff: float, logg: float, metallicity: float) -> FloatArray | None:
        """Return the model (56, 5) at these labels by trilinear interpolation at equal Rosseland depths.

        The metallicity is first limited to that of the models. The answer is None where a model that the
        interpolation needs is missing.
        """
        labels = (teff, logg, float(np.clip(metallicity, self.axes[2][0], self.axes[2][-1])))
        corners = []
        for value, axis in zip(labels, self.axes, strict=True):
            if not axis[0] <= value <= axis[-1]:
                return None
            low = min(int(np.searchsorted(axis, value, side="right")) - 1, len(axis) - 2)
            share = (value - axis[low]) / (axis[low + 1] - axis[low])
            # A model of weight zero may be missing.
            corners.append([(low + step, weight) for step, weight in enumerate((1 - share, share)) if weight])
        found = np.zeros(self.models.shape[3:])
        for (i, first), (j, second), (k, third) in itertools.product(*corners):
            found += first * second * third * self.models[i, j, k]
        return found if np.isfinite(found).all() else None

    def save(self, path: Path) -> None:
        """Write to an .npz file."""
        with atomic_file(path) as temporary:
            np.savez(temporary, models=self.models, teff=self.axes[0], logg=self.axes[1], metal=self.axes[2])

    @classmethod
    def load(cls, path: Path) -> "Atmospheres":
        """Read from `save`."""
        with np.load(path) as file:
            return cls((file["teff"], file["logg"], file["metal"]), file["models"])


def read_marcs(index: Path, lines: Iterator[str]) -> Atmospheres:
    """Read the models of a table with the columns teff, logg, metal, alpha and nlines.

    Args:
        index: the table, one row per model.
        lines: of all models, in the order of the table.

    Raises:
        DataError: a model without structure, or with another number of depths.
    """
    from astropy.table import Table

    table = Table.read(index)
    axes = tuple(np.unique(np.asarray(table[name], np.float64)) for name in ("teff", "logg", "metal"))
    models = np.full((*map(len, axes), DEPTHS, len(COLUMNS)), np.nan)
    nearest = np.full(models.shape[:3], _ALPHA_TOLERANCE)
    for row in table:
        text = list(itertools.islice(lines, int(row["nlines"])))
        at = tuple(
            int(np.searchsorted(axis, row[name]))
            for name, axis in zip(("teff", "logg", "metal"), axes, strict=True)
        )
        if abs(row["alpha"]) < nearest[at]:
            models[at] = structure(text)
            nearest[at] = abs(row["alpha"])
    return Atmospheres((axes[0], axes[1], axes[2]), models)


def structure(lines: list[str]) -> FloatArray:
    """Return the structure (56, 5) of a model in the format of MARCS.

    Raises:
        DataError: it has no structure, or another number of depths.
    """
    start = next((k for k, line in enumerate(lines) if line.startswith("Model structure")), None)
    if start is None or int(lines[start - 1].split()[0]) != DEPTHS:
        raise DataError(f"a MARCS model without structure at {DEPTHS} depths: {lines[0].strip()}")
    rows = [line.split() for line in lines[start + 2 : start + 2 + DEPTHS]]
    table = np.array(rows, np.float64)[:, _MARCS_COLUMNS]
    pressures = [COLUMNS.index(name) for name in ("lg_electron_pressure", "lg_gas_pressure")]
    table[:, pressures] = np.log10(table[:, pressures])
    return table
