"""The source survey of the baselines: what they may learn from before they see a target."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from specjax.preprocess import PrincipalFill, to_lamost
from specjax.pretrain import corpus, simulated, simulated_batches
from specjax.pretrain.batches import Material, make_data
from specjax.pretrain.config import PretrainConfig
from specjax.progress import Say, silent
from specjax.simulate.emulator import shipped
from specjax.simulate.process import Shape
from specjax.surveys import mastar, miles
from specjax.typing import Float32Array, FloatArray


class Source(NamedTuple):
    """m stars.

    Attributes:
        flux: (m, p) normalised, on the LAMOST grid.
        labels: (m, 3) Teff (K), log g (dex), [Fe/H] (dex); for simulated stars (m, 5), see
            `simulate.labels.LABELS`.
        material: draws augmented batches of such stars, as for the foundation model.
        fill: fills missing pixels.
        smoothed: FWHM in Angstrom -> flux (m, p) at that resolution, smoothed before the continuum is fitted,
            as that of a target is.
        shape: covariance of the process that emulates simulated stars; None for observed ones.
    """

    flux: Float32Array
    labels: FloatArray
    material: Material
    fill: PrincipalFill
    smoothed: Callable[[float], Float32Array]
    shape: Shape | None = None


def observed_source(libraries: Path, say: Say = silent) -> Source:
    """Return the MILES stars that "mini" was trained on."""
    pairs, fill = corpus.build(libraries, say)

    def smoothed(fwhm: float) -> Float32Array:
        stars = miles.read(libraries / "miles")
        stars = dataclasses.replace(stars, id=stars.meta["name"].astype(str)).select(pairs.id)
        lamost = to_lamost(stars, fwhm=miles.FWHM, fwhm_to=fwhm)
        return fill.apply(lamost.flux, None, lamost.mask).astype(np.float32)

    return Source(pairs.flux, pairs.labels, make_data(pairs, PretrainConfig()), fill, smoothed)


def simulated_source(libraries: Path, say: Say = silent) -> Source:
    """Return the simulated stars that "mini-physics" was trained on."""
    library = mastar.read(libraries / "mastarhc_v2")
    stars = simulated.build(shipped(), library, say)
    config = PretrainConfig.of("mini-physics").without_degraded()
    fill = simulated.fill_of(stars)

    def smoothed(fwhm: float) -> Float32Array:
        spectra = simulated.continued(simulated.simulate(shipped()), library).select(stars.id)
        return to_lamost(spectra, fwhm=miles.FWHM, fwhm_to=fwhm).flux.astype(np.float32)

    material = simulated_batches.make_material(stars, config)
    return Source(stars.flux[:, 0], stars.labels, material, fill, smoothed, stars.shape)
