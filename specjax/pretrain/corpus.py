"""The corpus of the mini model: MILES stars on both model grids.

The LAMOST side is each star's observed MILES spectrum. The Gaia XP side is constructed: the same spectrum
degraded to XP resolution where MILES covers it (3540-7410 A) and continued to 10200 A by the best matching
mean MaStar spectrum; bluer samples are missing. Each star also has degraded copies, as surveys of lower
resolution would deliver it: smoothed first and then normalised, by the same code as any survey. Their noise
is drawn anew in every batch. Stars that are also in STELIB are excluded: they are the target.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from specjax.catalogues.star_names import common_stars, normalise_star_name
from specjax.errors import DataError
from specjax.flags import MAX_MASKED, Flag
from specjax.preprocess import PrincipalFill, to_gaia_xp, to_lamost
from specjax.preprocess.operators import SIGMA_PER_FWHM
from specjax.preprocess.to_grid import OVERSAMPLED, OVERSMOOTH
from specjax.progress import Say, silent
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import mastar, miles, stelib
from specjax.typing import BoolArray, Float32Array, FloatArray, IntArray, StrArray
from specjax.wavelength import LAMOST_WAVELENGTH

LABELS = ("teff", "logg", "fe_h")
TEFF_RANGE = (3800.0, 7500.0)  # K: in cooler and hotter stars [Fe/H] shows in other features, or not at all
# Stars beyond the range by more than these margins (K) represent those that are too cool or too hot.
COOL_MARGIN = 100.0
HOT_MARGIN = 300.0
MILES_FWHM = 2.5  # Angstrom
DEGRADED_FWHM = tuple(np.geomspace(5, 32, 8).round(1).tolist())  # Angstrom
NOISELESS = 1e6  # S/N
FILL_COMPONENTS = 30
MILES_LABELLED, MILES_UNLABELLED = 495, 164
"""Stars of MILES as a target survey: as many as in the paper (arXiv 2507.20972)."""
MIN_COMMON = 50  # XP samples (1000 A) needed to match a library spectrum


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of LAMOST and Gaia XP spectra of n stars.

    Attributes:
        flux: (n, 1462) continuum-normalised, missing pixels filled.
        xp_flux: (n, 343) relative to the flux at 550 nm, 0 where missing.
        xp_valid: (n, 343), False where missing.
        labels: (n, 3) teff (K), logg (dex), fe_h (dex); NaN where unknown.
        id: (n,) star names.
        degraded: (n, k, 1462) noiseless copies at k lower resolutions, or None.
        noise_width: (k,) Gaussian sigma in pixels by which `to_lamost` smooths each copy and therefore its
            noise, or None.
    """

    flux: Float32Array
    xp_flux: Float32Array
    xp_valid: BoolArray
    labels: FloatArray
    id: StrArray
    degraded: Float32Array | None = None
    noise_width: Float32Array | None = None

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: BoolArray | IntArray) -> "Pairs":
        parts: dict[str, Any] = {
            name: value if value is None or name == "noise_width" else value[index]
            for name, value in self.__dict__.items()
        }
        return replace(self, **parts)


def build(libraries: Path, say: Say = silent, *, degraded: bool = False) -> tuple[Pairs, PrincipalFill]:
    """Build the corpus from the stellar libraries.

    Args:
        libraries: the folder of `services.stellar_libraries`.
        say: takes lines of progress.
        degraded: also make the copies at the resolutions DEGRADED_FWHM.

    Returns:
        The labelled source stars (3800-7500 K, not in STELIB) and the principal components that fill missing
        pixels, fitted to these stars.

    Raises:
        DataError: a file is missing or malformed, or no star is in range.
    """
    say("reading MILES and STELIB")
    source = _source_stars(libraries)
    labels = label_table(source)
    keep = in_range(labels)
    if not keep.any():
        raise DataError(
            f"{libraries} holds no labelled MILES star between {TEFF_RANGE[0]} and {TEFF_RANGE[1]} K"
        )
    source = source[keep]
    say("normalising the spectra and constructing their XP partners")
    lamost = to_lamost(source)
    fill = PrincipalFill.fit(lamost.flux, lamost.mask, FILL_COMPONENTS)
    xp = xp_partners(source, MILES_FWHM, mastar.read(libraries / "mastarhc_v2"))
    pairs = Pairs(
        flux=_filled(lamost, fill),
        xp_flux=xp.flux.astype(np.float32),
        xp_valid=~xp.mask,
        labels=labels[keep],
        id=source.meta["name"].astype(str),
        degraded=_degraded_copies(source, fill, say) if degraded else None,
        noise_width=noise_width(np.array(DEGRADED_FWHM)) if degraded else None,
    )
    good = (lamost.meta["flag"] == Flag.GOOD) & pairs.xp_valid.any(axis=1)
    return pairs[good], fill


def out_of_range_stars(
    libraries: Path, fill: PrincipalFill, say: Say = silent, *, degraded: bool = False
) -> dict[str, Float32Array]:
    """Return spectra of MILES stars outside the temperature range of the model.

    As in the corpus, stars of STELIB are excluded.

    Args:
        libraries: the folder of `services.stellar_libraries`.
        fill: fills missing pixels, see `build`.
        say: takes lines of progress.
        degraded: as in `build`; without, k is 0.

    Returns:
        {flag: (m, 1 + k, 1462)} for HOTTER_THAN_TRAINING and COOLER_THAN_TRAINING, each star as observed and
        at k lower resolutions.
    """
    source = _source_stars(libraries)
    teff = source.meta["teff"]
    kinds = {
        Flag.HOTTER_THAN_TRAINING: teff > TEFF_RANGE[1] + HOT_MARGIN,
        Flag.COOLER_THAN_TRAINING: teff < TEFF_RANGE[0] - COOL_MARGIN,
    }
    found = {}
    for flag, outside in kinds.items():
        stars = source[outside]
        lamost = to_lamost(stars)
        flux = _filled(lamost, fill)
        good = lamost.meta["flag"] == Flag.GOOD
        say(f"{good.sum()} stars with the flag {flag}")
        copies = [_degraded_copies(stars, fill, say)] if degraded else []
        found[str(flag)] = np.concatenate([flux[:, None], *copies], axis=1)[good]
    return found


def label_table(spectra: Spectra) -> FloatArray:
    """Return the labels LABELS (n, 3) of spectra: K, dex and dex, NaN where unknown."""
    return np.stack([spectra.meta[name] for name in LABELS], axis=1)


def in_range(labels: FloatArray) -> BoolArray:
    """Return (n,) bool, True where the labels (n, 3) are complete and Teff is within TEFF_RANGE."""
    teff = labels[:, 0]
    return np.isfinite(labels).all(axis=1) & (teff >= TEFF_RANGE[0]) & (teff <= TEFF_RANGE[1])


class MilesParts(NamedTuple):
    """Rows of the MILES stars with labels in range: a target of the experiments, and the others."""

    labelled: IntArray
    unlabelled: IntArray
    development: IntArray


def miles_parts(count: int) -> MilesParts:
    """Divide `count` stars at random, always in the same way.

    Raises:
        DataError: there are too few.
    """
    if count < MILES_LABELLED + MILES_UNLABELLED:
        raise DataError(
            f"{count} MILES stars are too few for {MILES_LABELLED} labelled and {MILES_UNLABELLED} others"
        )
    order = np.random.default_rng(0).permutation(count)
    development = count - MILES_LABELLED - MILES_UNLABELLED
    cuts = np.split(order, [development, development + MILES_UNLABELLED])
    return MilesParts(*(np.sort(cuts[k]) for k in (2, 1, 0)))


def read_miles(libraries: Path) -> Spectra:
    """Read the MILES stars with all labels and 3800-7500 K.

    Their spectra are in the rest frame. Saying so spares them a velocity measured from the lines, which at
    low resolution is uncertain enough to have a few of them flagged as too fast.
    """
    stars = miles.read(libraries / "miles")
    return stars.with_meta(redshift=np.zeros(len(stars)))[in_range(label_table(stars))]


def development_stars(libraries: Path) -> Spectra:
    """Read the MILES stars that belong to no target of the experiments, STELIB included."""
    stars = read_miles(libraries)
    stars = stars[miles_parts(len(stars)).development]
    return stars[~_in_stelib(stars, libraries)]


def noise_width(fwhm: FloatArray) -> Float32Array:
    """Return the Gaussian sigma, in LAMOST pixels, by which `to_lamost` smooths spectra of FWHM (Angstrom).

    `to_lamost` smooths spectra with a FWHM above OVERSAMPLED to OVERSMOOTH times that and leaves the others
    unchanged (sigma 0). As pixels are logarithmic, the sigma is that at the centre of the grid.
    """
    pixel = float(np.median(np.diff(LAMOST_WAVELENGTH)))
    sigma = np.sqrt(OVERSMOOTH**2 - 1) * fwhm * SIGMA_PER_FWHM / pixel
    return np.where(fwhm > OVERSAMPLED, sigma, 0.0).astype(np.float32)


def _source_stars(libraries: Path) -> Spectra:
    """Read the MILES stars that are not in STELIB."""
    source = miles.read(libraries / "miles")
    return source[~_in_stelib(source, libraries)]


def _in_stelib(stars: Spectra, libraries: Path) -> BoolArray:
    """Return (n,) bool, True for the stars whose names are also in STELIB."""
    shared = common_stars(stars.meta["name"], stelib.read(libraries / "stelib").meta["name"])
    return np.array([normalise_star_name(name) in shared for name in stars.meta["name"]])


def _degraded_copies(source: Spectra, fill: PrincipalFill, say: Say) -> Float32Array:
    """Degrade n spectra to each of DEGRADED_FWHM: (n, k, 1462)."""
    copies = []
    for fwhm in DEGRADED_FWHM:
        say(f"degrading the spectra to a FWHM of {fwhm:g} A")
        degraded = grism.degrade(source, fwhm, NOISELESS, fwhm_from=MILES_FWHM)
        copies.append(_filled(to_lamost(degraded, fwhm=fwhm), fill))
    return np.stack(copies, axis=1)


def _filled(lamost: Spectra, fill: PrincipalFill) -> Float32Array:
    return fill.apply(lamost.flux, None, lamost.mask).astype(np.float32)


def xp_partners(spectra: Spectra, fwhm: float, library: Spectra | None = None) -> Spectra:
    """Degrade spectra to Gaia XP samples and continue them by the best matching spectrum of a library.

    The best match has the smallest mean squared relative difference of the XP samples that are valid in both.
    It is scaled to the star over the 400 A next to the join.

    Args:
        spectra: n flux-calibrated spectra.
        fwhm: resolution of the spectra (Angstrom).
        library: mean MaStar spectra; None leaves missing samples missing.

    Returns:
        (n, 343) Spectra as from `to_gaia_xp`, with fewer masked samples.
    """
    own = to_gaia_xp(spectra, fwhm_from=fwhm)
    if library is None:
        return own
    other = to_gaia_xp(library, fwhm_from=MILES_FWHM)
    flux, mask = own.flux.copy(), own.mask.copy()
    for row in range(len(own)):
        if own.mask[row].all():
            continue
        match = _best_match(own.flux[row], own.mask[row], other)
        if match is not None:
            flux[row], mask[row] = _continued(flux[row], mask[row], other.flux[match], other.mask[match])
    fraction = mask.mean(axis=1)
    resolved = (own.meta["flag"] == Flag.MASKED_FRACTION) & (fraction <= MAX_MASKED)
    flag = np.where(resolved, Flag.GOOD, own.meta["flag"])
    ivar = np.where(mask, 0.0, np.where(own.mask, 1.0, own.ivar))
    return replace(own, flux=flux, mask=mask, ivar=ivar).with_meta(masked_fraction=fraction, flag=flag)


def _best_match(flux: FloatArray, mask: BoolArray, library: Spectra) -> int | None:
    """Return the row of the library that matches a spectrum best, None if too few samples are in common."""
    both = ~mask & ~library.mask
    ratio = np.divide(library.flux, flux, out=np.ones_like(library.flux), where=both & (flux > 0))
    distance = ((ratio - 1) ** 2).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
    distance = np.where(both.sum(axis=1) >= MIN_COMMON, distance, np.inf)
    return int(distance.argmin()) if np.isfinite(distance).any() else None


def _continued(
    flux: FloatArray,
    mask: BoolArray,
    other: FloatArray,
    other_mask: BoolArray,
    join: int = 20,
) -> tuple[FloatArray, BoolArray]:
    """Continue a spectrum beyond its ends by another one, scaled to it over `join` samples at each end."""
    valid = np.flatnonzero(~mask)
    flux, mask = flux.copy(), mask.copy()
    missing = np.flatnonzero(mask & ~other_mask)
    for side in (missing[missing < valid[0]], missing[missing > valid[-1]]):
        if side.size == 0:
            continue
        edge = valid[:join] if side[0] < valid[0] else valid[-join:]
        edge = edge[~other_mask[edge] & (other[edge] > 0)]
        if edge.size:
            flux[side] = other[side] * np.median(flux[edge] / other[edge])
            mask[side] = False
    return flux, mask
