"""Stellar libraries as target surveys, as observed and at low resolution."""

from pathlib import Path

from specjax.adapt.target import Target, make_target
from specjax.preprocess import to_lamost
from specjax.pretrain.corpus import xp_partners
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import mastar
from specjax.typing import BoolArray

GRISM = "-grism"
"""Ending of the name of a target at low resolution."""


def targets_of(
    stars: Spectra, fwhm: float, usable: BoolArray, libraries: Path, names: tuple[str, ...], label: str
) -> list[Target]:
    """Make targets of the stars of a library.

    Their Gaia XP spectra are made from their own flux, continued with the best-matching mean MaStar spectrum.

    Args:
        stars: n flux-calibrated spectra with the labels in `meta`.
        fwhm: their resolution, Angstrom.
        usable: (n,) stars that may be labelled ones.
        libraries: folder of the stellar libraries.
        names: names of the targets; those that end in `GRISM` are degraded by `grism.degrade`.
        label: label to adapt to.
    """
    xp = xp_partners(stars, fwhm, mastar.read(libraries / "mastarhc_v2"))
    found = []
    for name in names:
        coarse = name.endswith(GRISM)
        seen, resolution = (grism.degrade(stars, fwhm_from=fwhm), grism.FWHM) if coarse else (stars, fwhm)
        found.append(
            make_target(
                name,
                to_lamost(seen, fwhm=resolution),
                stars.meta[label],
                label=label,
                fe_h=stars.meta["fe_h"],
                usable=usable,
                xp=xp,
                fwhm=resolution,
            )
        )
    return found
