"""Stars of two labels on small grids: low-rank spectra with some noise, and a small model that reads them."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np

from specjax.adapt.objectives import Objective
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.stage import Stage
from specjax.adapt.target import Target
from specjax.config import DecoderConfig, LabelHeadConfig, XPAutoencoderConfig
from specjax.foundation import Foundation
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.corpus import Pairs
from specjax.train.optimizer import GroupSchedule
from tests.models.tiny import TINY, on_grid, random_system

CONFIG = dataclasses.replace(
    TINY,
    name="stars",
    specformer=dataclasses.replace(TINY.specformer, num_layers=1, mask_chunks=2, mask_width=3),
    xp_autoencoder=XPAutoencoderConfig(num_pixels=23, hidden_dim=22, latent_dim=20, num_blocks=1),
    decoder=DecoderConfig(lamost_hidden=(30,), gaia_xp_hidden=(26,)),
    head=LabelHeadConfig(hidden_dims=(16,), num_labels=2, members=2),
)
FAST = GroupSchedule(learning_rate=3e-2)
ADAPT = AdaptConfig(
    seeds=3,
    train=20,
    validate=4,
    tower_folds=2,
    lora1=Stage(steps=5, batch=6, tower=FAST, objective=Objective(label=0.0, masked=1.0)),
    lora3=Stage(steps=5, batch=8, tower=FAST, objective=Objective(label=0.0, contrastive=1.0)),
    head=(Stage(steps=20, snapshots=2, head=FAST),),
    joint=(Stage(steps=20, batch=8, snapshots=2, tower=FAST, head=FAST),),
    head_scales=(0.5, 1.0),
    tower_scales=(0.5, 1.0),
)
NOTHING = AugmentConfig(  # no variation at all
    smoothing=(0.0, 0.0),
    shift=0.0,
    continuum=0.0,
    response=0.0,
    noise=(0.0, 0.0),
    mixing=0.0,
    moving=0.0,
    degraded_noise=(0.0, 0.0),
    gap_probability=0.0,
)
PIXELS, XP_PIXELS = CONFIG.specformer.num_pixels, CONFIG.xp_autoencoder.num_pixels


@contextlib.contextmanager
def quick_compilation():
    """Compile programs in half the time, for tests of logic: they run once, and what they say is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def labels(n, seed=0):
    """Teff in K and [Fe/H] in dex, (n, 2)."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(4000, 7000, n), rng.uniform(-2.5, 0.5, n)], axis=1)


def spectra(values, seed=1, bias=0.0, noise=0.01):
    """LAMOST-like (n, 41) and XP-like (n, 23) flux whose lines follow the labels, and `bias` times a tilt."""
    hot, metal = (values[:, :1] - 5500) / 1500, (values[:, 1:] + 1) / 1.5
    rng, shapes = np.random.default_rng(seed), np.random.default_rng(99)
    made = []
    for pixels in (PIXELS, XP_PIXELS):
        lines = shapes.normal(size=(4, pixels))
        flux = 1 - 0.1 * (
            hot * lines[0] + metal * lines[1] + hot * metal * lines[2] + 0.5 * metal**2 * lines[3]
        )
        flux += bias * np.linspace(-1, 1, pixels) * (1 + metal)
        made.append(flux + noise * rng.normal(size=flux.shape))
    return made


def corpus(n=40, seed=0):
    values = labels(n, seed)
    flux, xp_flux = spectra(values, seed + 1)
    xp_valid = np.ones(xp_flux.shape, bool)
    xp_valid[: n // 2, -3:] = False
    return Pairs(
        flux=flux.astype(np.float32),
        xp_flux=np.where(xp_valid, xp_flux, 0).astype(np.float32),
        xp_valid=xp_valid,
        labels=values,
        id=np.array([f"star{k}" for k in range(n)]),
    )


def observed(values, prefix, seed, bias=0.3):
    """LAMOST-like Spectra, some of whose pixels are masked, and the XP-like ones of the same stars."""
    flux, xp_flux = spectra(values, seed, bias)
    mask = np.random.default_rng(seed).random(flux.shape) < 0.03
    ids = [f"{prefix}{k}" for k in range(len(values))]
    return on_grid(flux, mask=mask, id=ids), on_grid(xp_flux, id=ids, survey="gaia_xp")


def target(unlabelled=12, xp=True, **changes):
    """A survey whose spectra are tilted against the model's, with the label fe_h."""
    values = labels(40, seed=5)
    others, others_xp = observed(labels(12, seed=7), "U", 8)
    made = Target(
        name="tilted",
        labelled=observed(values, "L", 6)[0],
        truth=values[:, 1],
        label="fe_h",
        unlabelled=others[:unlabelled],
        unlabelled_xp=others_xp[:unlabelled] if xp else None,
        fe_h=values[:, 1],
    )
    return dataclasses.replace(made, **changes)


@functools.cache
def foundation():
    """A model of random parameters whose heads are in the labels' units."""
    values = labels(60, seed=3)
    flux, _ = spectra(values)
    scale = {"label_mean": values.mean(0).astype(np.float32), "label_std": values.std(0).astype(np.float32)}
    model = Foundation(config=CONFIG, variables=random_system(CONFIG))
    stats = {}
    for head in ("mlp1", "mlp2"):
        features = model.features(flux, head)
        stats[head] = {"feature_mean": features.mean(0), "feature_std": features.std(0), **scale}
    return dataclasses.replace(model, stats=stats)
