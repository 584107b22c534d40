"""The recipe of a pretraining run: which stages, how long, on spectra varied in which way."""

import dataclasses

from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.loop import StageConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Schedules and variations of a pretraining run; chosen on held-out MILES stars (see docs/mini.md)."""

    preset: str = "mini"
    seed: int = 0
    held_out: float = 0.1  # share of the stars kept for validation
    neighbours: int = 6
    masked_weight: float = 0.1
    label_weight: float = 1.0
    xp_noise: float = 0.01
    head_pool: int = 20480
    augment: AugmentConfig = AugmentConfig(noise=(0.003, 0.05), rendition_probability=0.5)  # for the towers
    head_augment: AugmentConfig = AugmentConfig(rendition_probability=0.5)
    backbone: StageConfig = StageConfig(steps=5000, batch=64, learning_rate=1.5e-3, chunk=250)
    autoencoder: StageConfig = StageConfig(steps=2000, batch=128, learning_rate=1e-3)
    alignment: StageConfig = StageConfig(steps=800, batch=128, learning_rate=2e-3)
    heads: StageConfig = StageConfig(steps=2000, batch=512, learning_rate=2e-3, chunk=500)
