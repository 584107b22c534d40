"""A short pretraining run on synthetic stars."""

import dataclasses

import numpy as np

from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.batches import make_data
from specjax.pretrain.config import PretrainConfig, StageConfig
from tests import synthetic

STAGE = StageConfig(steps=4, batch=8, chunk=2)
AUGMENT = AugmentConfig(gap_width=6, degraded_probability=0.5)
CONFIG = PretrainConfig(
    held_out=0.25,
    head_pool=512,
    augment=AUGMENT,
    head_augment=AUGMENT,
    backbone=STAGE,
    autoencoder=STAGE,
    alignment=STAGE,
    heads=STAGE,
)


def corpus(degraded=True):
    pairs = synthetic.corpus()
    if not degraded:
        return pairs
    noise = 0.05 * np.random.default_rng(4).normal(size=(len(pairs), 3, synthetic.PIXELS))
    return dataclasses.replace(
        pairs,
        degraded=(pairs.flux[:, None] + noise).astype(np.float32),
        noise_width=np.array([0.0, 2.0, 5.0], np.float32),
    )


def held_out_stars(pairs, config=CONFIG):
    """Return which stars are missing from the training data, identified by their XP spectra."""
    kept = np.asarray(make_data(pairs, config)[0]["xp_flux"])
    return ~(pairs.xp_flux[:, None] == kept[None]).all(axis=2).any(axis=1)


def without_held_out(pairs):
    """Replace the spectra of held-out stars by NaN, which spreads to everything that reads one of them."""
    held_out, changes = held_out_stars(pairs), {}
    for name in ("flux", "xp_flux", "degraded"):
        values = getattr(pairs, name).copy()
        values[held_out] = np.nan
        changes[name] = values
    return dataclasses.replace(pairs, **changes)
