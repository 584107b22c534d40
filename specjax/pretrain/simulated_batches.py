"""Batches of simulated stars with labels of their own, drawn on the device.

A Gaussian process like that of the emulator is fitted to the preprocessed grid, see `simulated`: drawing a
batch then takes three small matrix products.
"""

from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from specjax.models.products import matmul
from specjax.preprocess.to_grid import XP_REFERENCE
from specjax.pretrain.augment import AugmentConfig, augment, chebyshev, extend_blue
from specjax.pretrain.batches import Material, ValidationStars
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.simulated import SimulatedStars
from specjax.simulate.labels import LABELS, VMICRO_MARGIN, microturbulence
from specjax.simulate.process import Components, LabelProcess, Shape
from specjax.train.sharding import shard_rows
from specjax.typing import Tree

TARGETS = ("teff", "logg", "fe_h", "alpha_fe")
"""Labels that the model learns; microturbulence varies but is not predicted."""

COMPONENTS = 80
XP_COMPONENTS = 20
XP_NOISE = 0.01  # variance of the XP partners relative to the process: the continuation jumps between stars
XP_ERROR, XP_DEGREE = 0.03, 5  # of the flux: observed spectra are calibrated and reddened differently
_GROUPS = 8  # of a batch, each at one resolution
_VALIDATION = 512
MIN_VMICRO = 0.5  # km/s
COOL = 4600.0
"""Teff in K below which simulated features are too strong, see `PretrainConfig.cool_weight`."""


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
