"""Pretraining on simulated spectra, which the emulator draws anew in every batch.

The emulator's grid covers 3954 to 5648 A. Its spectra are therefore continued by those of mean MaStar
spectra, chosen by their flux alone, so that the continuum is fitted over the same range as that of any
survey, and the Gaia XP partner covers what MaStar covers.

Observed spectra without labels take the place of some simulated ones in masked modelling and alignment, with
their own flux as far as it reaches as Gaia XP partner. No label of an observed star enters.

Preprocessing is not linear in the flux, because of the continuum. So the spectra of the whole grid are
preprocessed, at every resolution, and the same Gaussian process that emulates spectra is fitted to the
results: drawing a batch then takes three small matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from specjax.flags import Flag
from specjax.models.products import matmul
from specjax.preprocess import PrincipalFill, to_lamost
from specjax.preprocess.resample import smooth
from specjax.preprocess.to_grid import XP_REFERENCE
from specjax.pretrain.augment import AugmentConfig, augment, chebyshev, extend_blue
from specjax.pretrain.batches import Material, ValidationStars
from specjax.pretrain.config import PretrainConfig
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
from specjax.simulate.labels import LABELS, VMICRO_MARGIN, microturbulence
from specjax.simulate.process import Components, LabelProcess, Shape
from specjax.spectra import Spectra
from specjax.train.sharding import shard_rows
from specjax.typing import BoolArray, Float32Array, FloatArray, StrArray, Tree

TARGETS = ("teff", "logg", "fe_h", "alpha_fe")
"""Labels that the model learns; microturbulence varies but is not predicted."""

COMPONENTS = 80
XP_COMPONENTS = 20
XP_NOISE = 0.01  # variance of the XP partners relative to the process: the continuation jumps between stars
XP_ERROR, XP_DEGREE = 0.03, 5  # of the flux: observed spectra are calibrated and reddened differently
_GROUPS = 8  # of a batch, each at one resolution
_JOIN = 40  # pixels (46 A) over which a continuation is scaled
_AT_ONCE = 128
_VALIDATION = 512
MIN_VMICRO = 0.5  # km/s
COOL = 4600.0
"""Teff in K below which simulated features are too strong, see `PretrainConfig.cool_weight`."""


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


def make_material(stars: SimulatedStars, config: PretrainConfig) -> Material:
    """Fit the processes to the simulated stars and hold out some draws for validation."""
    flux = [Components.of(rows, COMPONENTS) for rows in stars.flux.swapaxes(0, 1).astype(np.float64)]
    xp = Components.of(stars.xp_flux.astype(np.float64), XP_COMPONENTS)
    scores = np.concatenate([part.scores for part in flux], axis=1)
    fitted = LabelProcess.fit(stars.labels, scores, stars.shape)
    partners = LabelProcess.fit(stars.labels, xp.scores, Shape(stars.shape.length, XP_NOISE))
    spread = stars.labels.std(axis=0)
    spread[4] = (stars.labels[:, 4] - microturbulence(*stars.labels.T[:3])).std()
    targets = stars.labels[:, [LABELS.index(name) for name in TARGETS]]
    scaler = {
        "label_mean": targets.mean(axis=0).astype(np.float32),
        "label_std": targets.std(axis=0).astype(np.float32),
    }
    data = {
        "grid": stars.labels.astype(np.float32),
        "spread": spread.astype(np.float32),
        "planes": stars.planes.astype(np.float32),
        "process": fitted,
        "mean": np.stack([part.mean for part in flux]),
        "components": np.stack([part.vectors for part in flux]),
        "noise_width": stars.noise_width,
        "partners": partners,
        "xp_mean": xp.mean,
        "xp_components": xp.vectors,
        "xp_valid": stars.xp_valid,
        "cool_weight": np.float32(config.cool_weight),
        **scaler,
    }
    if stars.observed is not None:
        data["observed"] = vars(stars.observed)
    data = jax.tree.map(jnp.asarray, data)
    with_labels = replace(config.augment, observed_probability=0.0)
    sample = draw_batch(jax.random.key(config.seed + 1), data, _VALIDATION, with_labels)
    labels = np.asarray(sample["labels"]) * scaler["label_std"] + scaler["label_mean"]
    validation = ValidationStars(sample["flux"], labels.astype(np.float64), True, simulated=True)
    return Material(data, validation, scaler, draw_batch)


def draw_batch(key: jax.Array, data: Tree, batch: int, config: AugmentConfig) -> Tree:
    """Draw a batch of stars, see `batches.Draw`: new labels, a resolution, and the augmentation.

    Observed stars, which take the place of some simulated ones, have weight 0 in the losses of the labels.
    """
    choose, move, resolve, vary, blue, calibrate, swap = jax.random.split(key, 7)
    labels = _draw_labels(choose, move, data, batch, config.moving)
    column = _draw_resolutions(resolve, batch, len(data["noise_width"]), config.degraded_probability)
    weight = jnp.where(labels[:, 0] < COOL, data["cool_weight"], 1.0)
    flux = _flux(data, labels, column)
    xp_flux = data["xp_mean"] + matmul(data["partners"](labels), data["xp_components"])
    xp_valid = jnp.broadcast_to(data["xp_valid"], xp_flux.shape)
    if config.observed_probability and "observed" in data:
        is_observed, star = _draw_observed(swap, batch, data, config.observed_probability)
        others, mine = data["observed"], is_observed[:, None]
        flux = jnp.where(mine, others["flux"][star, column], flux)
        xp_flux = jnp.where(mine, others["xp_flux"][star], xp_flux)
        xp_valid = jnp.where(mine, others["xp_valid"][star], xp_valid)
        weight = jnp.where(is_observed, 0.0, weight)
    flux, valid = augment(vary, flux, config, column > 0, data["noise_width"][column])
    xp_flux *= 1 + _xp_errors(calibrate, xp_flux.shape)
    xp_flux, xp_valid = extend_blue(blue, jnp.where(xp_valid, xp_flux, 0.0), xp_valid)
    targets = jnp.stack([labels[:, LABELS.index(name)] for name in TARGETS], axis=1)
    return shard_rows(
        {
            "flux": flux,
            "valid": valid,
            "xp_flux": xp_flux,
            "xp_valid": xp_valid,
            "labels": (targets - data["label_mean"]) / data["label_std"],
            "weight": weight,
        }
    )


def _draw_observed(key: jax.Array, batch: int, data: Tree, probability: float) -> tuple[jax.Array, jax.Array]:
    """Draw which rows of a batch are observed stars (b,), and which star each of them would be (b,)."""
    which, choose = jax.random.split(key)
    star = jax.random.randint(choose, (batch,), 0, len(data["observed"]["flux"]))
    return jax.random.bernoulli(which, probability, (batch,)), star


def _xp_errors(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw relative errors (n, 343) of flux calibration and colour, zero at the reference wavelength."""
    draws = XP_ERROR * jax.random.normal(key, (shape[0], XP_DEGREE))
    errors = matmul(draws, chebyshev(shape[1], XP_DEGREE)[1:])
    return errors - errors[:, XP_REFERENCE, None]


def _draw_labels(choose: jax.Array, move: jax.Array, data: Tree, batch: int, moving: float) -> jax.Array:
    """Draw stars of the grid and move their labels, unless that leaves the domain: labels (b, 5).

    What moves in place of the microturbulence is its departure from the relation, which shifts with the other
    labels.
    """
    start = data["grid"][jax.random.randint(choose, (batch,), 0, len(data["grid"]))]
    steps = moving * data["spread"] * jax.random.normal(move, start.shape)
    moved = start[:, :4] + steps[:, :4]
    departure = start[:, 4] - _usual(start) + steps[:, 4]
    micro = jnp.maximum(_usual(moved) + departure, MIN_VMICRO)
    moved = jnp.concatenate([moved, micro[:, None]], axis=1)
    standard = data["process"].standardised(moved)
    inside = (matmul(standard, data["planes"][:, :-1].T) + data["planes"][:, -1] <= 0).all(axis=1)
    # Just within the margin, as float32 rounds.
    inside &= jnp.abs(micro - _usual(moved)) < 0.999 * VMICRO_MARGIN
    return jnp.where(inside[:, None], moved, start)


def _usual(labels: jax.Array) -> jax.Array:
    """Return the microturbulence (b,) of the relation at labels (b, 3 or more)."""
    return cast(jax.Array, microturbulence(labels[:, 0], labels[:, 1], labels[:, 2], numpy=jnp))


def _draw_resolutions(key: jax.Array, batch: int, resolutions: int, probability: float) -> jax.Array:
    """Draw the column of the resolution (b,) of each star, the same for all stars of a group."""
    if resolutions == 1 or not probability:
        return jnp.zeros(batch, int)
    lower, which = jax.random.split(key)
    groups = _group_count(batch)
    degraded = jax.random.bernoulli(lower, probability, (groups,))
    column = jnp.where(degraded, jax.random.randint(which, (groups,), 1, resolutions), 0)
    return jnp.repeat(column, batch // groups)


def _group_count(batch: int) -> int:
    """Return the number of groups of a batch, which are of equal size."""
    return _GROUPS if batch % _GROUPS == 0 else 1


def _flux(data: Tree, labels: jax.Array, column: jax.Array) -> jax.Array:
    """Emulate normalised flux (b, p) at labels (b, 5) and one resolution a group."""
    scores = data["process"](labels)
    batch, groups = len(labels), _group_count(len(labels))
    scores = scores.reshape(batch, -1, data["components"].shape[1])
    scores = jnp.take_along_axis(scores, column[:, None, None], axis=1)[:, 0]
    first = column.reshape(groups, -1)[:, 0]
    parts = scores.reshape(groups, batch // groups, -1)
    flux = jnp.einsum("gbc,gcp->gbp", parts, data["components"][first], precision="highest")
    return cast(jax.Array, (flux + data["mean"][first][:, None]).reshape(batch, -1))
