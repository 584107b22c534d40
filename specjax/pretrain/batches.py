"""What pretraining learns from: the corpus as arrays, and batches of stars mixed, moved and varied anew."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from specjax.devices import AXIS
from specjax.pretrain.augment import AugmentConfig, augment, mix
from specjax.pretrain.label_model import LabelModel
from specjax.pretrain.recipe import PretrainConfig
from specjax.report.metrics import r2, robust_sigma
from specjax.typing import FloatArray, Tree


@dataclasses.dataclass(frozen=True)
class Scored:
    """Stars as they are, by which a stage is judged while it trains.

    Attributes:
        flux: (m, p).
        labels: (m, k), in their units.
        held_out: whether no stage trains on them; otherwise they are the training stars.
    """

    flux: jax.Array
    labels: FloatArray
    held_out: bool

    def scores(self, predicted: jax.Array, scaler: Tree, column: int) -> dict[str, float]:
        """Score one label of standardised predictions (m, k)."""
        word = "held-out" if self.held_out else "train"
        truth = self.labels[:, column]
        guess = np.asarray(predicted)[:, column] * scaler["label_std"][column] + scaler["label_mean"][column]
        return {
            f"{word} sigma([Fe/H])": float(robust_sigma(guess - truth)),
            f"{word} R2": float(r2(truth, guess)),
        }


def make_data(corpus: Any, config: PretrainConfig) -> tuple[Tree, Scored, Tree]:
    """Turn `corpus.Pairs` into the arrays that all stages train on, of the stars that are not held out.

    Returns (data, scored, scaler): data has spectra (n, 1 + k, p), the stars as observed and at k lower
    resolutions, noise_width (1 + k,), xp_flux, xp_valid, labels (standardised), neighbours in label space
    (n, neighbours) and the label model; scaler has label_mean and label_std.
    """
    order = np.random.default_rng(config.seed).permutation(len(corpus))
    held_out = np.zeros(len(corpus), bool)
    held_out[order[: round(config.held_out * len(corpus))]] = True
    stars = corpus[~held_out]
    scored = corpus[held_out] if held_out.any() else stars
    scaler = {
        "label_mean": stars.labels.mean(axis=0).astype(np.float32),
        "label_std": stars.labels.std(axis=0).astype(np.float32),
    }
    labels = ((stars.labels - scaler["label_mean"]) / scaler["label_std"]).astype(np.float32)
    distance = ((labels[:, None] - labels[None]) ** 2).sum(-1)
    spectra, width = stars.flux[:, None], np.zeros(1, np.float32)
    if stars.renditions is not None:
        spectra = np.concatenate([spectra, stars.renditions], axis=1)
        width = np.concatenate([width, stars.rendition_width])
    data = {
        "spectra": spectra,
        "noise_width": width,
        "xp_flux": stars.xp_flux,
        "xp_valid": stars.xp_valid,
        "labels": labels,
        "neighbours": np.argsort(distance, axis=1)[:, 1 : config.neighbours + 1],
        "label_model": LabelModel.fit(labels),
    }
    judged = Scored(jnp.asarray(scored.flux), scored.labels, bool(held_out.any()))
    return jax.tree.map(jnp.asarray, data), judged, scaler


def draw(key: jax.Array, data: Tree, batch: int, variations: AugmentConfig) -> Tree:
    """Draw a batch of mixed, moved and varied stars: flux, valid, xp_flux, xp_valid, labels.

    A drawn star is a weighted sum of stars, the same for its spectra and its labels.
    """
    choose, pair, move, resolve, vary, blue = jax.random.split(key, 6)
    number = len(data["labels"])
    index = jax.random.randint(choose, (batch,), 0, number)
    partner, share = mix(pair, index, data["neighbours"], variations.mixing)
    weights = jax.nn.one_hot(index, number) * (1 - share) + jax.nn.one_hot(partner, number) * share
    labels = _sum("bn,nk->bk", weights, data["labels"])
    xp_flux = _sum("bn,np->bp", weights, data["xp_flux"])
    if variations.moving:
        moved = labels + variations.moving * jax.random.normal(move, labels.shape)
        step = data["label_model"].step(labels, moved)
        weights, labels = weights + step, moved
        # A sample that some star lacks says nothing of how stars differ there.
        known = data["xp_valid"].all(axis=0)
        xp_flux += jnp.where(known, _sum("bn,np->bp", step, data["xp_flux"]), 0.0)
    flux, valid = _observed(resolve, vary, weights, data, variations)
    xp_valid = data["xp_valid"][index] & data["xp_valid"][partner]
    xp_flux, xp_valid = extend_blue(blue, xp_flux, xp_valid)
    drawn = {"flux": flux, "valid": valid, "xp_flux": xp_flux, "xp_valid": xp_valid, "labels": labels}
    return rows_apart(drawn)


def _observed(
    resolve: jax.Array, vary: jax.Array, weights: jax.Array, data: Tree, variations: AugmentConfig
) -> tuple[jax.Array, jax.Array]:
    """Observe weighted sums of stars (b, n) by surveys drawn at random: flux (b, p) and what is valid."""
    spectra = data["spectra"]
    resolutions = spectra.shape[1]
    if resolutions == 1 or not variations.rendition_probability:
        return augment(vary, _sum("bn,np->bp", weights, spectra[:, 0]), variations)
    lower, which = jax.random.split(resolve)
    rendered = jax.random.bernoulli(lower, variations.rendition_probability, (len(weights),))
    column = jax.random.randint(which, rendered.shape, 1, resolutions)
    column = jnp.where(rendered, column, 0)
    flux = _sum("bn,bk,nkp->bp", weights, jax.nn.one_hot(column, resolutions), spectra)
    return augment(vary, flux, variations, rendered, data["noise_width"][column])


def _sum(subscripts: str, *operands: jax.Array) -> jax.Array:
    """Sum in full precision: what the stars' spectra hold must not be lost to a matrix unit's few bits."""
    return jnp.einsum(subscripts, *operands, precision="highest")


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
