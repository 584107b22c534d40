"""The mini model's corpus: MILES stars on both model grids, with XP-like partners.

What is observed and what is built: the LAMOST side is each star's own MILES spectrum. The Gaia XP side is
the same spectrum degraded to XP resolution where MILES covers it (3540-7410 A), continued to 10200 A by the
mean MaStar spectrum that matches it best, and left out below. Beside each star as observed stand renditions
of it, as surveys of lower resolution would deliver it: smoothed first, normalised then, by the code that
normalises any survey; their noise is drawn anew in every batch. Stars that are in STELIB too are not in the
corpus: they are the target.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specjax.catalogues.star_names import common_stars, normalise_star_name
from specjax.errors import DataError
from specjax.flags import MAX_MASKED, Flag
from specjax.preprocess import PrincipalFill, to_gaia_xp, to_lamost
from specjax.preprocess.operators import SIGMA_PER_FWHM
from specjax.preprocess.to_grid import OVERSAMPLED, OVERSMOOTH
from specjax.simulate import grism
from specjax.spectra import Spectra
from specjax.surveys import mastar, miles, stelib
from specjax.typing import BoolArray, Float32Array, FloatArray, StrArray
from specjax.wavelength import LAMOST_WAVELENGTH

LABELS = ("teff", "logg", "fe_h")
TEFF_RANGE = (3800.0, 7500.0)  # K: cooler and hotter stars show [Fe/H] in other ways, or not at all
# K: stars hotter than the range by more than this stand for all that are too hot for the model, and stars
# cooler than it by more than a third of this for all that are too cool.
MARGIN = 300.0
MILES_FWHM = 2.5  # Angstrom
RENDITIONS = tuple(np.geomspace(5, 32, 8).round(1).tolist())  # FWHM (A)
NOISELESS = 1e6  # S/N
FILL_COMPONENTS = 30
MIN_COMMON = 50  # XP samples, 1000 A, that say which library spectrum is like a star


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """n stars on both grids.

    Attributes:
        flux: (n, 1462) continuum-normalised, missing pixels filled.
        xp_flux: (n, 343) divided by the flux at 550 nm, 0 where missing.
        xp_valid: (n, 343), False where missing.
        labels: (n, 3) teff (K), logg (dex), fe_h (dex); NaN where unknown.
        id: (n,) star names.
        renditions: (n, k, 1462) the stars at k lower resolutions, without noise, or None.
        rendition_width: (k,) Gaussian sigma in pixels by which to_lamost smooths each of them, and so their
            noise, or None.
    """

    flux: Float32Array
    xp_flux: Float32Array
    xp_valid: BoolArray
    labels: FloatArray
    id: StrArray
    renditions: Float32Array | None = None
    rendition_width: Float32Array | None = None

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: NDArray) -> "Pairs":
        parts: dict[str, Any] = {
            name: value if value is None or name == "rendition_width" else value[index]
            for name, value in self.__dict__.items()
        }
        return replace(self, **parts)


def build(
    libraries: Path, say: Callable[[str], None] = lambda text: None, *, renditions: bool = False
) -> tuple[Pairs, PrincipalFill]:
    """Build the corpus from the folder of `services.stellar_libraries`.

    With `renditions` the stars are made at the resolutions of RENDITIONS too. Returns the labelled
    source stars (3800-7500 K, not in STELIB) and the principal components that fill missing pixels, fitted to
    them.

    Raises:
        DataError: files that are missing or not as they should be.
    """
    say("reading MILES and STELIB")
    source = _source_stars(libraries)
    labels = np.stack([source.meta[name] for name in LABELS], axis=1)
    keep = in_range(labels)
    if not keep.any():
        raise DataError(
            f"{libraries} holds no labelled MILES star between {TEFF_RANGE[0]} and {TEFF_RANGE[1]} K"
        )
    source = source[keep]
    say("normalising, and building the XP side")
    lamost = to_lamost(source)
    fill = PrincipalFill.fit(lamost.flux, lamost.mask, FILL_COMPONENTS)
    xp = xp_partners(source, MILES_FWHM, mastar.read(libraries / "mastarhc_v2"))
    pairs = Pairs(
        flux=fill.apply(lamost.flux, None, lamost.mask).astype(np.float32),
        xp_flux=xp.flux.astype(np.float32),
        xp_valid=~xp.mask,
        labels=labels[keep],
        id=source.meta["name"].astype(str),
        renditions=_renditions(source, fill, say) if renditions else None,
        rendition_width=noise_width(np.array(RENDITIONS)) if renditions else None,
    )
    good = (lamost.meta["flag"] == Flag.GOOD) & pairs.xp_valid.any(axis=1)
    return pairs[good], fill


def _source_stars(libraries: Path) -> Spectra:
    """Read the MILES stars that are not in STELIB: those are the target."""
    source = miles.read(libraries / "miles")
    shared = common_stars(source.meta["name"], stelib.read(libraries / "stelib").meta["name"])
    return source[np.array([normalise_star_name(name) not in shared for name in source.meta["name"]])]


def _renditions(source: Spectra, fill: PrincipalFill, say: Callable[[str], None]) -> Float32Array:
    made = []
    for fwhm in RENDITIONS:
        say(f"rendering the stars at FWHM {fwhm:g} A")
        degraded = grism.degrade(source, fwhm, NOISELESS, fwhm_from=MILES_FWHM)
        lamost = to_lamost(degraded, fwhm=fwhm)
        made.append(fill.apply(lamost.flux, None, lamost.mask).astype(np.float32))
    return np.stack(made, axis=1)


def noise_width(fwhm: FloatArray) -> Float32Array:
    """Gaussian sigma in LAMOST pixels by which `to_lamost` smooths spectra of that FWHM (Angstrom).

    It takes a spectrum from its FWHM to OVERSMOOTH times that. The sigma is that in the middle of the grid,
    as pixels are logarithmic; 0 where it does not smooth.
    """
    pixel = float(np.median(np.diff(LAMOST_WAVELENGTH)))
    sigma = np.sqrt(OVERSMOOTH**2 - 1) * fwhm * SIGMA_PER_FWHM / pixel
    return np.where(fwhm > OVERSAMPLED, sigma, 0.0).astype(np.float32)


def outside(
    libraries: Path, fill: PrincipalFill, say: Callable[[str], None] = lambda text: None
) -> dict[str, Float32Array]:
    """Spectra of MILES stars beyond the model's range: {kind: (m, 1 + k, 1462)}, as observed and renditions.

    The kinds are "hotter_than_training" and "cooler_than_training". As in the corpus, stars of STELIB are not
    among them.
    """
    source = _source_stars(libraries)
    teff = source.meta["teff"]
    (cool, hot), found = TEFF_RANGE, {}
    for kind, beyond in {"hotter": teff > hot + MARGIN, "cooler": teff < cool - MARGIN / 3}.items():
        stars = source[beyond]
        lamost = to_lamost(stars)
        flux = fill.apply(lamost.flux, None, lamost.mask).astype(np.float32)
        good = lamost.meta["flag"] == Flag.GOOD
        say(f"{good.sum()} stars are {kind} than the model's range")
        whole = np.concatenate([flux[:, None], _renditions(stars, fill, say)], axis=1)
        found[f"{kind}_than_training"] = whole[good]
    return found


def in_range(labels: FloatArray) -> BoolArray:
    """Return which (n, 3) labels are complete and within TEFF_RANGE."""
    teff = labels[:, 0]
    return np.isfinite(labels).all(axis=1) & (teff >= TEFF_RANGE[0]) & (teff <= TEFF_RANGE[1])


def xp_partners(spectra: Spectra, fwhm: float, library: Spectra | None = None) -> Spectra:
    """Degrade spectra to Gaia XP samples and continue them by the best matching spectrum of a library.

    Args:
        spectra: n flux-calibrated spectra of resolution `fwhm` (Angstrom).
        library: mean MaStar spectra; for each star the one whose XP samples have the smallest mean squared
            relative difference where both are valid, scaled to the star over the last 400 A on each side of
            the join. None leaves missing samples missing.

    Returns:
        (n, 343) Spectra as `to_gaia_xp` gives them, with fewer masked samples.
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
    complete = (own.meta["flag"] == Flag.MASKED_FRACTION) & (fraction <= MAX_MASKED)
    flag = np.where(complete, Flag.GOOD, own.meta["flag"])
    ivar = np.where(mask, 0.0, np.where(own.mask, 1.0, own.ivar))
    return replace(own, flux=flux, mask=mask, ivar=ivar).with_meta(masked_fraction=fraction, flag=flag)


def _best_match(flux: FloatArray, mask: BoolArray, library: Spectra) -> int | None:
    """Return the row of the library that is most like a spectrum, None where too few samples tell."""
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
    """Take over the other spectrum's samples where the own ones are masked, scaled at the nearest join."""
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
