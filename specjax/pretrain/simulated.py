"""The simulated stars of pretraining: the grid of the emulator, preprocessed.

The emulator's grid covers 3954 to 5648 A. Its spectra are therefore continued by those of mean MaStar
spectra, chosen by their flux alone, so that the continuum is fitted over the same range as that of any
survey, and the Gaia XP partner covers what MaStar covers.

Observed spectra without labels take the place of some simulated ones in masked modelling and alignment, with
their own flux as far as it reaches as Gaia XP partner. No label of an observed star enters.

Preprocessing is not linear in the flux, because of the continuum. So the spectra of the whole grid are
preprocessed, at every resolution, and the same Gaussian process that emulates spectra is fitted to the
results, see `simulated_batches`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from specjax.flags import Flag
from specjax.preprocess import PrincipalFill, to_lamost
from specjax.preprocess.resample import smooth
from specjax.pretrain.corpus import (
    DEGRADED_FWHM,
    FILL_COMPONENTS,
    MILES_FWHM,
    NOISELESS,
    noise_width,
    xp_partners,
)
from specjax.progress import Say, silent
from specjax.simulate import grism
from specjax.simulate.emulator import Emulator
from specjax.simulate.process import Shape
from specjax.spectra import Spectra
from specjax.typing import BoolArray, Float32Array, FloatArray, StrArray

_JOIN = 40  # pixels (46 A) over which a continuation is scaled
_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessedPairs:
    """Spectra and their Gaia XP partners after preprocessing.

    Attributes:
        flux: (m, 1 + k, 1462), as `SimulatedStars.flux`.
        xp_flux: (m, 343) relative to the flux at 550 nm, 0 where missing.
        xp_valid: (m, 343) False where missing.
    """

    flux: Float32Array
    xp_flux: Float32Array
    xp_valid: BoolArray


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedStars:
    """The grid of the emulator after preprocessing.

    Attributes:
        id: (n,) names.
        labels: (n, 5), see `simulate.labels.LABELS`.
        flux: (n, 1 + k, 1462) normalised, at the resolution of MILES and at k lower ones.
        noise_width: (1 + k,) see `corpus.noise_width`.
        xp_flux: (n, 343) relative to the flux at 550 nm, 0 where missing.
        xp_valid: (343,) False where missing.
        shape: covariance of the emulator's process.
        planes: (m, 6) faces of its domain, for standardised features and 1.
        observed: stars without labels; None if there are none.
    """

    id: StrArray
    labels: FloatArray
    flux: Float32Array
    noise_width: Float32Array
    xp_flux: Float32Array
    xp_valid: BoolArray
    shape: Shape
    planes: FloatArray
    observed: PreprocessedPairs | None = None


def build(
    emulator: Emulator,
    library: Spectra,
    say: Say = silent,
    *,
    degraded: bool = False,
    observed: Sequence[Spectra] = (),
) -> SimulatedStars:
    """Preprocess the grid of an emulator.

    Args:
        emulator: of flux over the continuum, and of the continuum.
        library: mean MaStar spectra, which continue the simulated ones.
        say: takes lines of progress.
        degraded: also at the resolutions DEGRADED_FWHM.
        observed: observed spectra at the resolution of MILES, whose labels are not used.
    """
    say(f"simulating {len(emulator.labels)} stars")
    stars = continued(simulate(emulator), library)
    say("constructing their XP partners")
    xp = xp_partners(stars, MILES_FWHM, library)
    resolutions = (MILES_FWHM, *(DEGRADED_FWHM if degraded else ()))
    say(f"normalising the spectra at {len(resolutions)} resolutions")
    pairs, good = _pairs(stars, resolutions, xp)
    unlabelled = [
        _pairs(spectra, resolutions, xp_partners(spectra, MILES_FWHM, library))[0] for spectra in observed
    ]
    return SimulatedStars(
        id=stars.id[good],
        labels=emulator.labels[good],
        flux=pairs.flux,
        noise_width=np.concatenate([np.zeros(1, np.float32), noise_width(np.array(resolutions[1:]))]),
        xp_flux=pairs.xp_flux,
        xp_valid=np.asarray(pairs.xp_valid.all(axis=0)),
        shape=emulator.shape,
        planes=emulator.domain.faces(),
        observed=_joined(unlabelled) if unlabelled else None,
    )


def _pairs(
    stars: Spectra, resolutions: tuple[float, ...], xp: Spectra
) -> tuple[PreprocessedPairs, BoolArray]:
    """Preprocess n spectra with Gaia XP partners; return the pairs that lack nothing, and (n,) which."""
    flux, good = _at_resolutions(stars, resolutions)
    good &= ~xp.mask.all(axis=1)
    pairs = PreprocessedPairs(
        flux=flux[good],
        xp_flux=np.where(xp.mask, 0.0, xp.flux)[good].astype(np.float32),
        xp_valid=~xp.mask[good],
    )
    return pairs, good


def _joined(parts: Sequence[PreprocessedPairs]) -> PreprocessedPairs:
    return PreprocessedPairs(
        flux=np.concatenate([part.flux for part in parts]),
        xp_flux=np.concatenate([part.xp_flux for part in parts]),
        xp_valid=np.concatenate([part.xp_valid for part in parts]),
    )


def _at_resolutions(stars: Spectra, resolutions: tuple[float, ...]) -> tuple[Float32Array, BoolArray]:
    """Return normalised flux (n, 1 + k, 1462), the first as given, and (n,) whether all pixels are good."""
    lamost = [to_lamost(stars, fwhm=resolutions[0])]
    for fwhm in resolutions[1:]:
        copy = grism.degrade(stars, fwhm, NOISELESS, fwhm_from=resolutions[0])
        lamost.append(to_lamost(copy, fwhm=fwhm))
    good = [(part.meta["flag"] == Flag.GOOD) & ~part.mask.any(axis=1) for part in lamost]
    return np.stack([part.flux for part in lamost], axis=1).astype(np.float32), np.all(good, axis=0)


def simulate(emulator: Emulator) -> Spectra:
    """Return the spectra of the grid (n, p) at the resolution of MILES, on the grid of `grism`.

    Pixels that the emulator does not cover are masked.
    """
    program = jax.jit(emulator.spectrum)
    starts = range(0, len(emulator.labels), _AT_ONCE)
    rows = [np.asarray(program(emulator.labels[start : start + _AT_ONCE])) for start in starts]
    flux = np.concatenate(rows).astype(np.float64)
    names = [f"simulated-{k:04d}" for k in range(len(flux))]
    fine = Spectra.build(emulator.wavelength, flux, id=names, medium="vacuum", survey="simulated")
    inside = (fine.wavelength[0] + 4 < grism.WAVELENGTH) & (fine.wavelength[-1] - 4 > grism.WAVELENGTH)
    coarse = smooth(fine, emulator.fwhm, MILES_FWHM, grism.WAVELENGTH[inside])
    whole = np.zeros((len(flux), grism.WAVELENGTH.size))
    whole[:, inside] = coarse.flux
    mask = np.broadcast_to(~inside, whole.shape)
    return Spectra.build(grism.WAVELENGTH, whole, mask=mask, id=names, medium="vacuum", survey="simulated")


def continued(stars: Spectra, library: Spectra) -> Spectra:
    """Fill the masked ends of spectra (n, p) from the library spectrum whose flux is most similar.

    Similar means the smallest variance of the logarithm of the ratio of the fluxes.

    Args:
        stars: spectra on one grid, all with the same mask.
        library: spectra that cover this grid, at the same resolution.
    """
    other = smooth(library.to_vacuum(), 0.0, 1.0, stars.wavelength)
    usable = ~other.mask.any(axis=1) & (other.flux > 0).all(axis=1)
    other_flux = other.flux[usable]
    valid = np.flatnonzero(~stars.mask.any(axis=0))
    inside = slice(int(valid[0]), int(valid[-1]) + 1)
    flux = stars.flux.copy()
    logarithm, other_logarithm = np.log(np.maximum(flux[:, inside], 1e-30)), np.log(other_flux[:, inside])
    for row in range(len(flux)):
        match = int((logarithm[row] - other_logarithm).var(axis=1).argmin())
        for end, edge in (
            (slice(None, inside.start), slice(inside.start, inside.start + _JOIN)),
            (slice(inside.stop, None), slice(inside.stop - _JOIN, inside.stop)),
        ):
            scale = np.median(flux[row, edge] / other_flux[match, edge])
            flux[row, end] = scale * other_flux[match, end]
    return Spectra.build(stars.wavelength, flux, id=stars.id, medium=stars.medium, survey=stars.survey)


def fill_of(stars: SimulatedStars) -> PrincipalFill:
    """Return the principal components of the stars that fill missing pixels."""
    flux = stars.flux[:, 0].astype(np.float64)
    return PrincipalFill.fit(flux, np.zeros(flux.shape, dtype=bool), FILL_COMPONENTS)
