"""Configuration of a pretraining run: schedules of the stages and augmentation of their spectra."""

import dataclasses
from typing import Any

import optax

from specjax.errors import ConfigError
from specjax.foundation.networks import DTYPES, module_dtype
from specjax.models.specformer import REMAT
from specjax.pretrain.augment import AugmentConfig
from specjax.train.schedules import warmup_cosine_adamw


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Length and optimizer of a stage: AdamW with linear warm-up and cosine decay to zero."""

    steps: int
    batch: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # fraction of the steps
    clip: float = 1.0  # global norm of the gradient
    chunk: int = 100  # steps between progress reports, validations and saved states

    def optimizer(self) -> optax.GradientTransformation:
        """Make the optimizer of the stage."""
        adamw = warmup_cosine_adamw(
            self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
        )
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Schedules and augmentation of a pretraining run, chosen on held-out MILES stars (see docs/mini.md)."""

    preset: str = "mini"
    seed: int = 0
    held_out: float = 0.1  # fraction of the stars kept for validation
    neighbours: int = 6  # nearest stars in label space, with which a star may be mixed
    masked_weight: float = 0.1  # of masked modelling in the loss of the backbone
    masked_rows: float = 0.5  # fraction of a batch whose tokens are masked
    label_weight: float = 1.0  # of the labels in the losses of backbone and alignment
    cool_weight: float = 1.0  # of simulated stars below 4600 K in the losses of the labels
    xp_noise: float = 0.01  # standard deviation, relative to the flux at 550 nm
    head_pool: int = 20480  # augmented spectra on whose features the heads train
    augment: AugmentConfig = AugmentConfig(noise=(0.003, 0.05), degraded_probability=0.5)  # for the towers
    head_augment: AugmentConfig = AugmentConfig(degraded_probability=0.5)
    backbone: StageConfig = StageConfig(steps=5000, batch=64, learning_rate=1.5e-3, chunk=250)
    autoencoder: StageConfig = StageConfig(steps=2000, batch=128, learning_rate=1e-3)
    alignment: StageConfig = StageConfig(steps=800, batch=128, learning_rate=2e-3)
    heads: StageConfig = StageConfig(steps=2000, batch=512, learning_rate=2e-3, chunk=500)

    @classmethod
    def of(cls, preset: str, **options: Any) -> "PretrainConfig":
        """Return the settings of a preset, with `options` for its fields."""
        return cls(preset=preset, **(_PHYSICS if preset == "mini-physics" else {}), **options)

    @classmethod
    def published(cls, preset: str, **options: Any) -> "PretrainConfig":
        """Return the published objectives, and the published schedules for models of the published sizes.

        Labels have no part in the towers, and spectra are as in the files. Models of other sizes keep the
        schedules of the mini models.
        """
        schedules = {} if preset.startswith("mini") else _PUBLISHED
        return cls(preset=preset, **{**_AS_PUBLISHED, **schedules, **options})

    def without_degraded(self) -> "PretrainConfig":
        """Return the same without copies of the stars at lower resolutions."""
        parts = {
            name: dataclasses.replace(getattr(self, name), degraded_probability=0.0)
            for name in ("augment", "head_augment")
        }
        return dataclasses.replace(self, **parts)


# Every batch is new, so that the stages can be longer without learning stars by heart.
_PHYSICS: dict[str, Any] = {
    "backbone": StageConfig(steps=6000, batch=64, learning_rate=1.5e-3, chunk=500),
    "cool_weight": 0.3,
    "augment": dataclasses.replace(PretrainConfig().augment, observed_probability=0.25),
}

_AS_PUBLISHED: dict[str, Any] = {
    "held_out": 0.01,
    "masked_weight": 1.0,
    "masked_rows": 1.0,
    "label_weight": 0.0,
    "xp_noise": 0.0,
    "head_pool": 65536,
    "augment": AugmentConfig(),
    "head_augment": AugmentConfig(),
}

# Batches are those of all devices together. The lengths of the last two are not published: they are 50 passes
# over the 820,000 pairs, and as many over 100,000 stars with labels.
_PUBLISHED: dict[str, Any] = {
    "backbone": StageConfig(
        steps=980_000, batch=512, learning_rate=1e-5, weight_decay=0.1, warmup=9_760 / 980_000
    ),
    "autoencoder": StageConfig(
        steps=1_960_000, batch=256, learning_rate=1e-5, weight_decay=0.1, warmup=19_520 / 1_960_000
    ),
    "alignment": StageConfig(steps=40_000, batch=1024, learning_rate=1e-4, weight_decay=0.05),
    "heads": StageConfig(steps=10_000, batch=512, learning_rate=1e-3, weight_decay=0.01, chunk=500),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How the networks of a run compute.

    Attributes:
        dtype: of the towers' matrix products, "float32" or "bfloat16". Parameters, optimizer state, norms,
            softmax and losses are float32 with both.
        remat: what the backward pass of a transformer block computes again, see `models.specformer.REMAT`.
        accumulate: parts of a batch that are computed one after the other.

    Raises:
        ConfigError: an unknown `dtype` or `remat`.
    """

    dtype: str = "float32"
    remat: str = "none"
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, DTYPES), ("remat", self.remat, tuple(REMAT))):
            if value not in known:
                raise ConfigError(f"{name} must be {' or '.join(known)}, not {value!r}")

    @property
    def module_dtype(self) -> str | None:
        """The `dtype` argument of the modules."""
        return module_dtype(self.dtype)


FLOAT32 = Compute()
