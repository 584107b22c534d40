"""STELIB as a target survey, as observed and degraded to a slitless low-resolution survey."""

from pathlib import Path

import numpy as np

from specjax.adapt.target import Target, make_target
from specjax.catalogues.star_names import crossmatch
from specjax.preprocess import to_lamost
from specjax.pretrain.corpus import LABELS, in_range, xp_partners
from specjax.report.metrics import robust_sigma
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import mastar, miles, stelib
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
    usable = in_range(_labels(spectra))
    xp = xp_partners(spectra, stelib.FWHM, mastar.read(libraries / "mastarhc_v2"))
    prepared = {
        "stelib": lambda: to_lamost(spectra, fwhm=stelib.FWHM),
        "stelib-grism": lambda: to_lamost(grism.degrade(spectra), fwhm=grism.FWHM),
    }
    fwhm = {"stelib": stelib.FWHM, "stelib-grism": grism.FWHM}
    truth, fe_h = spectra.meta[label], spectra.meta["fe_h"]
    return [
        make_target(
            name, prepared[name](), truth, label=label, fe_h=fe_h, usable=usable, xp=xp, fwhm=fwhm[name]
        )
        for name in names
    ]


def star_labels(libraries: Path, ids: StrArray) -> FloatArray:
    """Return `LABELS` (n, 3) of the STELIB stars with these ids: K, dex and dex, NaN where unknown."""
    return _labels(stelib.read(libraries / "stelib").select(ids))


def label_scatter(libraries: Path, target: Target, label: str = "fe_h") -> float:
    """Return the robust scatter between the STELIB and MILES labels of their common stars."""
    spectra = stelib.read(libraries / "stelib").select(target.labelled.id)
    source = miles.read(libraries / "miles")
    left, right = crossmatch(spectra.meta["name"].tolist(), source.meta["name"].tolist())
    difference = spectra.meta[label][left] - source.meta[label][right]
    return float(robust_sigma(difference[np.isfinite(difference)]))


def _labels(spectra: Spectra) -> FloatArray:
    return np.stack([spectra.meta[name] for name in LABELS], axis=1)
