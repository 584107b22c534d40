"""Training data of all stages: the corpus as arrays, and batches of mixed, moved and augmented stars."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from specjax.pretrain.augment import AugmentConfig, augment, extend_blue, mix
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.corpus import Pairs
from specjax.pretrain.label_model import LabelModel
from specjax.report.metrics import r2, robust_sigma
from specjax.train.sharding import shard_rows
from specjax.typing import AnyArray, FloatArray, Tree


@dataclasses.dataclass(frozen=True)
class ValidationStars:
    """Stars on which a stage is scored while it trains.

    Attributes:
        flux: (m, p).
        labels: (m, k), in physical units.
        held_out: whether they are excluded from training, or drawn apart from it; otherwise they are the
            training stars.
        simulated: whether their spectra are simulated; without noise, these are easier than observed ones.
    """

    flux: jax.Array
    labels: FloatArray
    held_out: bool
    simulated: bool = False

    def scores(
        self, predicted: jax.Array, scaler: Tree, column: int, name: str = "[Fe/H]"
    ) -> dict[str, float]:
        """Score one label of standardised predictions (m, k)."""
        prefix = "held-out" if self.held_out else "train"
        truth = self.labels[:, column]
        label = np.asarray(predicted)[:, column] * scaler["label_std"][column] + scaler["label_mean"][column]
        return {
            f"{prefix} sigma({name})": float(robust_sigma(label - truth)),
            f"{prefix} R2": float(r2(truth, label)),
        }

    def scatter(self, predicted: jax.Array, scaler: Tree) -> FloatArray | None:
        """Return the robust scatter (k,) of standardised predictions (m, k), in physical units.

        None unless the stars are observed, and were excluded from training.
        """
        if self.simulated or not self.held_out:
            return None
        residuals = np.asarray(predicted) * scaler["label_std"] + scaler["label_mean"] - self.labels
        return np.array([robust_sigma(column) for column in residuals.T])


Draw = Callable[[jax.Array, Tree, int, AugmentConfig], Tree]
"""(key, data, size, augmentation) -> a batch: flux, valid, xp_flux, xp_valid, standardised labels and weight.

The weight (n,) is that of a star in the losses of the labels.
"""


class Streams(Protocol):
    """Files from which the batches of stages are streamed, see `source.Source`."""

    def feed(self, towers: Sequence[str], batch: int, *, labels: bool = False, shared: bool = True) -> Any:
        """Return batches of the spectra of some towers, a `loop.Feed`."""

    def held_out_batches(self, towers: Sequence[str], batch: int) -> list[Tree]:
        """Return batches of held-out stars."""

    def count(self, tower: str) -> int:
        """Return the number of spectra of a tower to train on."""


class Material(NamedTuple):
    """What all stages of a run train on.

    Attributes:
        data: arrays from which batches are drawn, "noise_width" (1 + k,) among them; {} with a source.
        validation: stars on whose labels the stages are scored; None if there are none.
        scaler: label_mean and label_std; {} if there are no labels.
        draw: draws a batch from `data`, or varies the one that a feed has put into it.
        source: files from which batches are streamed; None if they are drawn from `data`.
    """

    data: Tree
    validation: ValidationStars | None
    scaler: Tree
    draw: Draw
    source: Streams | None = None


def make_data(pairs: Pairs, config: PretrainConfig) -> Material:
    """Hold out the validation stars and turn the others into the arrays that all stages train on.

    The data are spectra (n, 1 + k, p), the stars as observed and at k lower resolutions, noise_width
    (1 + k,), xp_flux, xp_valid, labels (standardised), neighbours in label space (n, neighbours) and the
    label model.
    Validation stars are those held out, or the training stars if none is held out.
    """
    held_out = np.zeros(len(pairs), bool)
    order = np.random.default_rng(config.seed).permutation(len(pairs))
    held_out[order[: round(config.held_out * len(pairs))]] = True
    stars = pairs[~held_out]
    scored = pairs[held_out] if held_out.any() else stars
    validation = ValidationStars(jnp.asarray(scored.flux), scored.labels, bool(held_out.any()))
    scaler = {
        "label_mean": stars.labels.mean(axis=0).astype(np.float32),
        "label_std": stars.labels.std(axis=0).astype(np.float32),
    }
    labels = ((stars.labels - scaler["label_mean"]) / scaler["label_std"]).astype(np.float32)
    distance = ((labels[:, None] - labels[None]) ** 2).sum(-1)
    data = {
        **_resolutions(stars),
        "xp_flux": stars.xp_flux,
        "xp_valid": stars.xp_valid,
        "labels": labels,
        "neighbours": np.argsort(distance, axis=1)[:, 1 : config.neighbours + 1],
        "label_model": LabelModel.fit(labels),
    }
    return Material(jax.tree.map(jnp.asarray, data), validation, scaler, draw_batch)


def _resolutions(stars: Pairs) -> dict[str, AnyArray]:
    """Stack the stars as observed and their degraded copies along axis 1."""
    spectra, width = stars.flux[:, None], np.zeros(1, np.float32)
    if stars.degraded is not None and stars.noise_width is not None:
        spectra = np.concatenate([spectra, stars.degraded], axis=1)
        width = np.concatenate([width, stars.noise_width])
    return {"spectra": spectra, "noise_width": width}


def draw_batch(key: jax.Array, data: Tree, batch: int, config: AugmentConfig) -> Tree:
    """Draw a batch of mixed, moved and augmented stars: flux, valid, xp_flux, xp_valid and labels.

    Each drawn star is a weighted sum of the stars in `data`, with the same weights for spectra and labels.
    """
    choose, pair, move, resolve, vary, blue = jax.random.split(key, 6)
    number = len(data["labels"])
    index = jax.random.randint(choose, (batch,), 0, number)
    partner, share = mix(pair, index, data["neighbours"], config.mixing)
    weights = jax.nn.one_hot(index, number) * (1 - share) + jax.nn.one_hot(partner, number) * share
    labels = _sum("bn,nk->bk", weights, data["labels"])
    xp_flux = _sum("bn,np->bp", weights, data["xp_flux"])
    if config.moving:
        moved = labels + config.moving * jax.random.normal(move, labels.shape)
        change = data["label_model"].weight_change(labels, moved)
        weights, labels = weights + change, moved
        # Samples that are missing in some star have no known dependence on the labels.
        known = data["xp_valid"].all(axis=0)
        xp_flux += jnp.where(known, _sum("bn,np->bp", change, data["xp_flux"]), 0.0)
    flux, valid = _augmented(resolve, vary, weights, data, config)
    xp_valid = data["xp_valid"][index] & data["xp_valid"][partner]
    xp_flux, xp_valid = extend_blue(blue, xp_flux, xp_valid)
    return shard_rows(
        {
            "flux": flux,
            "valid": valid,
            "xp_flux": xp_flux,
            "xp_valid": xp_valid,
            "labels": labels,
            "weight": jnp.ones(batch),
        }
    )


def _augmented(
    resolve: jax.Array, vary: jax.Array, weights: jax.Array, data: Tree, config: AugmentConfig
) -> tuple[jax.Array, jax.Array]:
    """Augment weighted sums (b, n) of stars, each at a random resolution: flux (b, p) and valid (b, p)."""
    spectra = data["spectra"]
    resolutions = spectra.shape[1]
    if resolutions == 1 or not config.degraded_probability:
        return augment(vary, _sum("bn,np->bp", weights, spectra[:, 0]), config)
    lower, which = jax.random.split(resolve)
    degraded = jax.random.bernoulli(lower, config.degraded_probability, (len(weights),))
    column = jax.random.randint(which, degraded.shape, 1, resolutions)
    column = jnp.where(degraded, column, 0)
    flux = _sum("bn,bk,nkp->bp", weights, jax.nn.one_hot(column, resolutions), spectra)
    return augment(vary, flux, config, degraded, data["noise_width"][column])


def _sum(subscripts: str, *operands: jax.Array) -> jax.Array:
    """Sum in full float32 precision, which the matrix units of accelerators do not use by default."""
    return jnp.einsum(subscripts, *operands, precision="highest")
