"""The baseline that needs no foundation: a multilayer perceptron on the source spectra themselves.

Trained on the corpus with the same survey-like variations as the mini model's heads, then applied to the
target as it is. It sees no target star, so one training serves all targets; the weights stay in the cache.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import load_model, save_model
from specjax.errors import ModelError
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.batches import draw, make_data
from specjax.pretrain.corpus import Pairs
from specjax.pretrain.loop import StageConfig, run_stage
from specjax.pretrain.recipe import PretrainConfig
from specjax.report.results import plain
from specjax.train.losses import label_loss
from specjax.typing import AnyArray, FloatArray

STAGE = StageConfig(steps=3000, batch=128, learning_rate=1e-3, chunk=1000)
# Smoothed to a FWHM of up to 31 A: low resolutions without making renditions, and on validation stars better.
VARIATIONS = AugmentConfig(smoothing=(0.3, 12.0), gap_probability=0.0)


class SpectrumMlp(nn.Module):
    """Flux over its continuum (n, 1462) to standardised labels (n, 3)."""

    widths: tuple[int, ...] = (256, 64)
    dropout: float = 0.3

    @nn.compact
    def __call__(self, flux: jax.Array, deterministic: bool = True) -> jax.Array:
        """Predict from flux on the LAMOST grid."""
        x = (flux - 1) / 0.2  # the depth of lines is kept, as in the mini model
        for width in self.widths:
            x = nn.Dropout(self.dropout)(nn.gelu(nn.Dense(width)(x)), deterministic=deterministic)
        return nn.Dense(3)(x)


def zero_shot(corpus: Pairs, flux: AnyArray, cache: Path, say: Any = print) -> FloatArray:
    """Predict [Fe/H] (n,) of target spectra (n, 1462), training first where the cache has no weights."""
    data, _, scaler = make_data(corpus, PretrainConfig())
    network = SpectrumMlp()
    content = json.dumps([plain(STAGE), plain(VARIATIONS)]).encode()
    content += corpus.flux.tobytes() + corpus.labels.tobytes()
    folder = cache / f"spectrum-mlp-{hashlib.sha256(content).hexdigest()[:16]}"
    try:
        params = load_model(folder).arrays
    except ModelError:
        params = _train(network, data, say)
        save_model(folder, config={}, arrays=jax.tree.map(np.asarray, params))
    predicted = np.asarray(network.apply({"params": params}, jnp.asarray(flux, jnp.float32)), np.float64)
    return predicted[:, 2] * scaler["label_std"][2] + scaler["label_mean"][2]


def _train(network: SpectrumMlp, data: Any, say: Any) -> Any:
    def loss(params: Any, stats: Any, data: Any, key: jax.Array) -> Any:
        draw_key, drop = jax.random.split(key)
        batch = draw(draw_key, data, STAGE.batch, VARIATIONS)
        predicted = network.apply({"params": params}, batch["flux"], False, rngs={"dropout": drop})
        return label_loss(predicted, batch["labels"]), (stats, {})

    key = jax.random.key(0)
    params = network.init(key, data["spectra"][:1, 0])["params"]
    params, _ = run_stage(
        "spectrum-mlp", loss, STAGE, params=params, batch_stats={}, data=data, key=key, say=say
    )
    return params
