"""What pretraining learns from: the corpus as arrays, and batches of stars mixed and varied anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from specjax.devices import AXIS
from specjax.metrics import r2, robust_sigma
from specjax.train.augment import AugmentConfig, augment, mix
from specjax.train.recipe import PretrainConfig

Tree = Any


def make_data(corpus: Any, config: PretrainConfig) -> tuple[Tree, Tree]:
    """Turn `corpus.Pairs` into the arrays that all stages read.

    Returns (data, scaler): data has flux, xp_flux, xp_valid, labels (standardised), neighbours (n, k) in
    label space, allowed (n,), False for held-out stars, and renditions (n, k, p) where the corpus has them;
    scaler has label_mean and label_std.
    """
    scaler = {
        "label_mean": corpus.labels.mean(axis=0).astype(np.float32),
        "label_std": corpus.labels.std(axis=0).astype(np.float32),
    }
    labels = ((corpus.labels - scaler["label_mean"]) / scaler["label_std"]).astype(np.float32)
    distance = ((labels[:, None] - labels[None]) ** 2).sum(-1)
    neighbours = np.argsort(distance, axis=1)[:, 1 : config.neighbours + 1]
    order = np.random.default_rng(config.seed).permutation(len(labels))
    allowed = np.ones(len(labels), bool)
    allowed[order[: round(config.held_out * len(labels))]] = False
    data = {
        "flux": corpus.flux,
        "xp_flux": corpus.xp_flux,
        "xp_valid": corpus.xp_valid,
        "labels": labels,
        "neighbours": neighbours,
        "allowed": allowed,
    }
    if corpus.renditions is not None:
        data["renditions"] = corpus.renditions
    return jax.tree.map(jnp.asarray, data), scaler


def draw(
    key: jax.Array, data: Tree, batch: int, variations: AugmentConfig, rendition_probability: float = 0.0
) -> Tree:
    """Draw a batch of mixed and varied stars: flux, valid, xp_flux, xp_valid, labels.

    With rendition_probability a star is taken at one of the lower resolutions of data["renditions"].
    """
    choose, pair, vary, lower, which, blue = jax.random.split(key, 6)
    logits = jnp.where(data["allowed"], 0.0, -jnp.inf)
    index = jax.random.categorical(choose, logits, shape=(batch,))
    partner, share = mix(pair, index, data["neighbours"], data["allowed"], variations.mixing)

    def mixed(name: str) -> jax.Array:
        return data[name][index] * (1 - share) + data[name][partner] * share

    flux = mixed("flux")
    if rendition_probability and "renditions" in data:
        renditions = data["renditions"]
        number = jax.random.randint(which, (batch,), 0, renditions.shape[1])
        rendered = renditions[index, number] * (1 - share) + renditions[partner, number] * share
        flux = jnp.where(jax.random.bernoulli(lower, rendition_probability, (batch, 1)), rendered, flux)
    flux, valid = augment(vary, flux, variations)
    xp_valid = data["xp_valid"][index] & data["xp_valid"][partner]
    xp_flux, xp_valid = extend_blue(blue, mixed("xp_flux"), xp_valid)
    drawn = {
        "flux": flux,
        "valid": valid,
        "xp_flux": xp_flux,
        "xp_valid": xp_valid,
        "labels": mixed("labels"),
    }
    return rows_apart(drawn)


def rows_apart(batch: Tree) -> Tree:
    """Spread the rows of a batch, leaves (n, ...), over the devices of the mesh that is set, if one is.

    Random numbers do not depend on it, so the batch is the same on any number of devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(AXIS))


def extend_blue(key: jax.Array, flux: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Continue half of the XP spectra (n, p) to the blue end by a straight line of random slope.

    No source star is observed below 354 nm, but real XP spectra and other surveys are: without this the
    weights of those samples would stay as drawn, and ruin the embedding of a spectrum that has them.
    """
    tilt, half = jax.random.split(key)
    first = jnp.argmax(valid, axis=1)[:, None]
    slope = jax.random.uniform(tilt, first.shape, minval=-0.8, maxval=0.3)
    beyond = jnp.maximum(first - jnp.arange(flux.shape[1]), 0) / jnp.maximum(first, 1)
    line = jnp.take_along_axis(flux, first, axis=1) * (1 + slope * beyond)
    extended = (beyond > 0) & jax.random.bernoulli(half, 0.5, first.shape)
    return jnp.where(extended, line, flux), valid | extended


def held_out_scores(predicted: jax.Array, data: Tree, scaler: Tree, column: int) -> dict[str, float]:
    """Score a label of the held-out stars, or of the training stars where none is held out.

    predicted (n, labels) is standardised, column that of [Fe/H].
    """
    allowed = np.asarray(data["allowed"])
    chosen, word = (allowed, "train") if allowed.all() else (~allowed, "held-out")
    mean, std = scaler["label_mean"][column], scaler["label_std"][column]
    truth = np.asarray(data["labels"])[chosen, column] * std + mean
    guess = np.asarray(predicted)[chosen, column] * std + mean
    return {
        f"{word} sigma([Fe/H])": float(robust_sigma(guess - truth)),
        f"{word} R2": float(r2(truth, guess)),
    }
