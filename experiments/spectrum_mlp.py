"""A zero-shot baseline without a foundation model: a multilayer perceptron on the source spectra.

It is trained on the corpus with augmentation similar to that of the mini model's heads and applied to the
target unchanged. It sees no target star, so that one training serves all targets; the weights are cached.
"""

import hashlib
import json
from pathlib import Path
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import load_model, save_model
from specjax.errors import ModelError
from specjax.models.apply import apply
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.batches import draw_batch, make_data
from specjax.pretrain.config import PretrainConfig, StageConfig
from specjax.pretrain.corpus import Pairs
from specjax.pretrain.loop import StageAux, run_stage
from specjax.progress import Say, silent
from specjax.report.results import plain
from specjax.train.losses import label_loss
from specjax.typing import AnyArray, FloatArray, Tree

STAGE = StageConfig(steps=3000, batch=128, learning_rate=1e-3, chunk=1000)
# Smoothing to a FWHM of up to 31 A covers low resolutions without degraded copies; it scores better on
# validation stars.
AUGMENT = AugmentConfig(smoothing=(0.3, 12.0), gap_probability=0.0)


class SpectrumMlp(nn.Module):
    """Continuum-normalised flux (n, 1462) to standardised labels (n, 3)."""

    widths: tuple[int, ...] = (256, 64)
    dropout: float = 0.3

    @nn.compact
    def __call__(self, flux: jax.Array, deterministic: bool = True) -> jax.Array:
        """Predict the labels from flux on the LAMOST grid."""
        x = (flux - 1) / 0.2  # keeps the depth of lines, as in the mini model
        for width in self.widths:
            x = nn.Dropout(self.dropout)(nn.gelu(nn.Dense(width)(x)), deterministic=deterministic)
        return nn.Dense(3)(x)


def zero_shot(corpus: Pairs, flux: AnyArray, cache: Path, say: Say = silent) -> FloatArray:
    """Predict [Fe/H] (n,) of target spectra (n, 1462), training first if the cache has no weights."""
    data, _, scaler = make_data(corpus, PretrainConfig())
    network = SpectrumMlp()
    content = json.dumps([plain(STAGE), plain(AUGMENT)]).encode()
    content += corpus.flux.tobytes() + corpus.labels.tobytes()
    folder = cache / f"spectrum-mlp-{hashlib.sha256(content).hexdigest()[:16]}"
    try:
        params = load_model(folder).arrays
    except ModelError:
        params = _train(network, data, say)
        save_model(folder, config={}, arrays=jax.tree.map(np.asarray, params))
    predicted = np.asarray(apply(network, {"params": params}, jnp.asarray(flux, jnp.float32)), np.float64)
    return cast(FloatArray, predicted[:, 2] * scaler["label_std"][2] + scaler["label_mean"][2])


def _train(network: SpectrumMlp, data: Tree, say: Say) -> Tree:
    def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> tuple[jax.Array, StageAux]:
        draw_key, drop = jax.random.split(key)
        batch = draw_batch(draw_key, data, STAGE.batch, AUGMENT)
        predicted = apply(network, {"params": params}, batch["flux"], False, rngs={"dropout": drop})
        return label_loss(predicted, batch["labels"]), (stats, {})

    key = jax.random.key(0)
    params = network.init(key, data["spectra"][:1, 0])["params"]
    params, _ = run_stage(
        "spectrum-mlp", loss, STAGE, params=params, batch_stats={}, data=data, key=key, say=say
    )
    return params
