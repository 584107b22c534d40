"""A baseline without a foundation model: a multilayer perceptron on the source spectra, as it is and adapted.

It is trained on the stars of the source with augmentation similar to that of the mini model's heads.
`zero_shot` applies it to the target unchanged: it sees no target star, so that one training serves all
targets; the weights are cached. `adapted` trains low-rank factors on the labelled stars of each seed, with
the schedules and the selection of LoRA2 and LoRA4, as in arXiv 2602.15021.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.source import Source
from specjax import lora
from specjax.adapt.selection import Candidates, fold_of, select, stars_of_folds
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.checkpoints import load_model, save_model
from specjax.config import LoRAConfig
from specjax.errors import ModelError
from specjax.models.apply import apply
from specjax.models.layers import LoRADense
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.config import StageConfig
from specjax.pretrain.loop import run_stage
from specjax.pretrain.programs import StageAux
from specjax.progress import Say, silent
from specjax.report.results import plain
from specjax.train.loop import fit
from specjax.train.losses import label_loss, pseudo_huber_loss
from specjax.train.optimizer import make_optimizer
from specjax.typing import AnyArray, FloatArray, Tree

STAGE = StageConfig(steps=3000, batch=128, learning_rate=1e-3, chunk=1000)
# Smoothing to a FWHM of up to 31 A covers low resolutions without degraded copies; it scores better on
# validation stars.
AUGMENT = AugmentConfig(smoothing=(0.3, 12.0), gap_probability=0.0)
LORA = LoRAConfig(rank=8, alpha=16.0)
"""The factors of every layer, as in the heads of the foundation model."""


class SpectrumMlp(nn.Module):
    """Continuum-normalised flux (n, 1462) to standardised labels (n, 3); `lora` adapts every layer."""

    widths: tuple[int, ...] = (256, 64)
    dropout: float = 0.3
    lora: LoRAConfig | None = None

    @nn.compact
    def __call__(self, flux: jax.Array, deterministic: bool = True) -> jax.Array:
        """Predict the labels from flux on the LAMOST grid."""
        x = (flux - 1) / 0.2  # keeps the depth of lines, as in the mini model
        for index, width in enumerate(self.widths):
            x = nn.gelu(LoRADense(width, lora=self.lora, name=f"dense_{index}")(x))
            x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return LoRADense(3, lora=self.lora, name=f"dense_{len(self.widths)}")(x)


class Trained(NamedTuple):
    """A network with the scale of [Fe/H] that it was trained on."""

    params: Tree
    mean: float
    std: float


def trained(source: Source, cache: Path, say: Say = silent) -> Trained:
    """Return the network, training it first if the cache has no weights."""
    scaler = source.material.scaler
    content = json.dumps([plain(STAGE), plain(AUGMENT), "dense_0"]).encode()
    content += source.flux.tobytes() + source.labels.tobytes()
    folder = cache / f"spectrum-mlp-{hashlib.sha256(content).hexdigest()[:16]}"
    try:
        params = load_model(folder).arrays
    except ModelError:
        params = _train(SpectrumMlp(), source, say)
        save_model(folder, config={}, arrays=jax.tree.map(np.asarray, params))
    return Trained(params, float(scaler["label_mean"][2]), float(scaler["label_std"][2]))


def zero_shot(network: Trained, flux: AnyArray) -> FloatArray:
    """Predict [Fe/H] (n,) of target spectra (n, 1462)."""
    predicted = apply(SpectrumMlp(), {"params": network.params}, jnp.asarray(flux, jnp.float32))
    return np.asarray(predicted, np.float64)[:, 2] * network.std + network.mean


def adapted(
    network: Trained, flux: AnyArray, truth: FloatArray, splits: Splits, config: AdaptConfig
) -> FloatArray:
    """Adapt the network to the training stars of each seed and predict all stars.

    Args:
        network: of `trained`.
        flux: (n, 1462) target spectra.
        truth: (n,) their [Fe/H]; those of test stars are not used.
        splits: S splits.
        config: folds, trainings of heads on offer and factors on their updates.

    Returns:
        (S, n) [Fe/H].
    """
    x = jnp.asarray(flux, jnp.float32)
    y = ((truth - network.mean) / network.std).astype(np.float32)
    seeds, folds, rows = len(splits), config.folds, splits.train
    runs, count, base = folds + 1, rows.shape[1], {"mlp1": network.params}
    keys = jax.vmap(jax.random.key)(jnp.asarray(splits.seeds))
    start = jax.vmap(lambda key: lora.init_adapters(key, base, {"lora2": LORA}))(keys)
    fold = fold_of(count, folds)
    used = np.stack([np.ones(count), *(1.0 * (fold != k) for k in range(folds))])
    own = {
        "rows": np.repeat(rows, runs, axis=0),
        "y": np.repeat(y[rows], runs, axis=0),
        "weight": np.tile(used, (seeds, 1)).astype(np.float32),
    }
    left_out = stars_of_folds(count, folds)
    parts_rows = rows[:, left_out].reshape(seeds * folds, -1)
    place = fold, np.arange(count) // folds
    unseen_rows = np.concatenate([rows, splits.validate], axis=1)
    as_it_is = np.asarray(zero_shot(network, flux) - network.mean) / network.std
    everything = [np.tile(as_it_is, (seeds, 1))]
    unseen = [as_it_is[unseen_rows]]
    for stage in config.head:
        result = fit(
            _loss,
            make_optimizer({"lora2": stage.head}, steps=stage.steps),
            frozen=base,
            trainable=jax.tree.map(lambda leaf: jnp.repeat(leaf, runs, axis=0), start),
            shared=x,
            per_seed=jax.tree.map(jnp.asarray, own),
            keys=jnp.repeat(keys, runs, axis=0),
            steps=stage.steps,
            snapshots=stage.snapshots,
        ).snapshots
        for step in range(stage.snapshots):
            state = jax.tree.map(
                lambda leaf, step=step: leaf[:, step].reshape(seeds, runs, *leaf.shape[2:]), result
            )
            whole = jax.tree.map(lambda leaf: leaf[:, 0], state)
            parts = jax.tree.map(lambda leaf: leaf[:, 1:].reshape(-1, *leaf.shape[2:]), state)
            for scale in config.head_scales:
                full = _predict(lora.scale_updates(whole, jnp.full(seeds, scale)), base, x[None])
                scaled = lora.scale_updates(parts, jnp.full(seeds * folds, scale))
                out_of_fold = _predict(scaled, base, x[parts_rows]).reshape(seeds, *left_out.shape)
                validated = np.take_along_axis(full, splits.validate, axis=1)
                everything.append(full)
                unseen.append(np.concatenate([out_of_fold[:, *place], validated], axis=1))
    nothing = np.zeros(len(everything))
    candidates = Candidates(
        nothing.astype(int), nothing.astype(int), nothing, nothing, np.stack(unseen, axis=1)
    )
    pick = select(candidates, y[unseen_rows])
    return np.stack(everything, axis=1)[np.arange(seeds), pick] * network.std + network.mean


def _fe_h(factors: Tree, base: Tree, flux: jax.Array) -> jax.Array:
    """Return standardised [Fe/H] (b,) of spectra (b, 1462) with one seed's factors."""
    params = lora.combine(base, factors)["mlp1"]
    return apply(SpectrumMlp(lora=LORA), {"params": params}, flux)[:, 2]


def _loss(factors: Tree, base: Tree, flux: jax.Array, own: Tree, key: jax.Array) -> jax.Array:
    del key
    return pseudo_huber_loss(_fe_h(factors, base, flux[own["rows"]]) - own["y"], own["weight"])


@jax.jit
def _in_seeds(factors: Tree, base: Tree, flux: jax.Array) -> jax.Array:
    return jax.vmap(_fe_h, in_axes=(0, None, 0))(factors, base, flux)


def _predict(factors: Tree, base: Tree, flux: jax.Array) -> FloatArray:
    """Return standardised [Fe/H] (R, b) of spectra (R, b, 1462), or (1, b, 1462) for all runs."""
    runs = len(jax.tree.leaves(factors)[0])
    return np.asarray(_in_seeds(factors, base, jnp.broadcast_to(flux, (runs, *flux.shape[1:]))), np.float64)


def _train(network: SpectrumMlp, source: Source, say: Say) -> Tree:
    material = source.material

    def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> tuple[jax.Array, StageAux]:
        draw_key, drop = jax.random.split(key)
        batch = material.draw(draw_key, data, STAGE.batch, AUGMENT)
        predicted = apply(network, {"params": params}, batch["flux"], False, rngs={"dropout": drop})
        labels = batch["labels"][:, : predicted.shape[1]]
        return label_loss(predicted, labels, batch["weight"]), (stats, {})

    key = jax.random.key(0)
    params = network.init(key, jnp.asarray(source.flux[:1]))["params"]
    params, _ = run_stage(
        "spectrum-mlp", loss, STAGE, params=params, batch_stats={}, data=material.data, key=key, say=say
    )
    return params
