"""STELIB as a target survey, as observed and degraded to a slitless low-resolution survey."""

from pathlib import Path

import numpy as np

from experiments.libraries import targets_of
from specjax.adapt.target import Target
from specjax.catalogues.star_names import crossmatch
from specjax.pretrain.corpus import in_range, label_table
from specjax.report.metrics import robust_sigma
from specjax.surveys import miles, stelib
from specjax.typing import FloatArray, StrArray

NAMES = ("stelib", "stelib-grism")


def make_targets(libraries: Path, names: tuple[str, ...] = NAMES, label: str = "fe_h") -> list[Target]:
    """Build the targets from the stellar libraries.

    Labelled stars have all labels, 3800-7500 K and at most 20% of the grid masked (126 stars); the remaining
    STELIB spectra are unlabelled. The Gaia XP spectra of both targets are made from the STELIB flux at
    3200-9900 A, extended to 10200 A with the best-matching mean MaStar spectrum.

    Args:
        libraries: folder of the stellar libraries.
        names: targets to build, any of `NAMES`.
        label: label to adapt to.
    """
    spectra = stelib.read(libraries / "stelib")
    usable = in_range(label_table(spectra))
    return targets_of(spectra, stelib.FWHM, usable, libraries, names, label)


def star_labels(libraries: Path, ids: StrArray) -> FloatArray:
    """Return `corpus.LABELS` (n, 3) of the STELIB stars with these ids: K, dex and dex, NaN where unknown."""
    return label_table(stelib.read(libraries / "stelib").select(ids))


def label_scatter(libraries: Path, target: Target, label: str = "fe_h") -> float:
    """Return the robust scatter between the STELIB and MILES labels of their common stars."""
    spectra = stelib.read(libraries / "stelib").select(target.labelled.id)
    source = miles.read(libraries / "miles")
    left, right = crossmatch(spectra.meta["name"].tolist(), source.meta["name"].tolist())
    difference = spectra.meta[label][left] - source.meta[label][right]
    return float(robust_sigma(difference[np.isfinite(difference)]))
