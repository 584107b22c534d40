"""Model configurations: frozen keyword-only dataclasses, presets, and conversion to and from JSON.

`get_preset("paper")` has the published sizes of SpecCLIP ("pr"), "base" and "split" those of its other two
forms, and "xp-transformer" those of the published Gaia XP transformer; "mini" and "mini-physics" are the
small models that ship with specjax. All take spectra on the same grids.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from specjax.errors import ConfigError

LORA_GROUPS = ("lora1", "lora2", "lora3", "lora4")

T = typing.TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """One set of low-rank factors: y = x W + b + (alpha/rank) (x A) B."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        _require(self.rank >= 1, f"LoRA rank must be at least 1, not {self.rank}")

    @property
    def scale(self) -> float:
        """The factor alpha/rank of the low-rank product."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecFormerConfig:
    """A masked transformer over windows of a spectrum; the defaults are the published LAMOST LRS encoder.

    Attributes:
        statistics: statistics prepended as columns to the token array; row 0 holds their values, the other
            rows hold zero.
        drop_last: whether the last window is dropped, as in the published code, which thereby ignores the
            last two LAMOST pixels.
        logit_scale: factor on q.k in attention; None is the published 1/head_dim (head_dim^-1/2, twice).
        flux_scale: with a number, the windows contain (flux - 1)/flux_scale of continuum-normalised flux.
            With None, as published, each spectrum is divided by its own standard deviation, so that only the
            row of statistics carries the depth of its lines.
    """

    num_pixels: int = 1462
    window: int = 20
    stride: int = 10
    drop_last: bool = True
    statistics: tuple[str, ...] = ("log10_std",)
    dim: int = 768
    num_layers: int = 6
    num_heads: int = 6
    mlp_dim: int = 3072
    max_len: int = 150
    mask_chunks: int = 6
    mask_width: int = 10
    logit_scale: float | None = None
    flux_scale: float | None = None

    def __post_init__(self) -> None:
        _require(self.dim % self.num_heads == 0, f"dim {self.dim} is not divisible by {self.num_heads} heads")
        _require(
            self.flux_scale is None or self.flux_scale > 0, f"flux_scale must be positive: {self.flux_scale}"
        )
        unknown = set(self.statistics) - {"mean", "std", "log10_std"}
        _require(not unknown, f"unknown token statistics {sorted(unknown)}")
        _require(self.num_tokens <= self.max_len, f"{self.num_tokens} tokens exceed max_len {self.max_len}")
        used = (self.num_windows - 1) * self.stride + self.window
        _require(0 < used <= self.num_pixels, f"the windows need {used} pixels of {self.num_pixels}")

    @property
    def num_windows(self) -> int:
        """Number of windows, starting at arange(0, num_pixels - overlap, stride), less a dropped last one."""
        starts = range(0, self.num_pixels - (self.window - self.stride), self.stride)
        return len(starts) - int(self.drop_last)

    @property
    def num_tokens(self) -> int:
        """Rows of the token array: the row of statistics and the windows (146 for LAMOST)."""
        return self.num_windows + 1

    @property
    def token_dim(self) -> int:
        """Columns of the token array: the statistics and the pixels of a window (21 for LAMOST)."""
        return self.window + len(self.statistics)

    @property
    def attention_scale(self) -> float:
        """The factor on q.k before the softmax."""
        return self.num_heads / self.dim if self.logit_scale is None else self.logit_scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class XPAutoencoderConfig:
    """The Gaia XP autoencoder; its num_pixels + 2 inputs are mean, std and the standardised flux."""

    num_pixels: int = 343
    hidden_dim: int = 1290
    latent_dim: int = 768
    expansion: int = 3
    num_blocks: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """The projection networks of both surveys into the contrastive space.

    Attributes:
        private_dim: 0 for the published "base" and "pr" models. A positive width adds private projection
            networks to the shared ones ("split").
        num_heads: attention heads of the shared and the private network.
    """

    shared_dim: int = 768
    private_dim: int = 0
    num_heads: tuple[int, ...] = (4, 2)
    mlp_expansion: int = 4
    feature_hidden: int = 1160
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, dim, heads in zip(("shared", "private"), self.dims, self.num_heads, strict=False):
            _require(dim % heads == 0, f"{name}_dim {dim} is not divisible by {heads} heads")

    @property
    def dims(self) -> tuple[int, ...]:
        """Output widths of the networks: (shared,) or (shared, private)."""
        return (self.shared_dim, self.private_dim) if self.private_dim else (self.shared_dim,)

    @property
    def dim(self) -> int:
        """Width of the projected vector, the shared part followed by the private part."""
        return self.shared_dim + self.private_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoders from the contrastive space to LAMOST and Gaia XP pixels, by their hidden widths."""

    lamost_hidden: tuple[int, ...] = (3072, 3072, 3072)
    gaia_xp_hidden: tuple[int, ...] = (3072, 1536, 768)
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelHeadConfig:
    """A regression head: (Linear, BatchNorm, ReLU, Dropout) for each hidden width, then Linear to the labels.

    Attributes:
        members: number of heads in a deep ensemble, whose predictions are averaged. If it is above 1, the
            parameters have a leading axis of this length.
    """

    hidden_dims: tuple[int, ...] = (1024, 512, 64)
    num_labels: int = 1
    dropout: float = 0.1
    members: int = 1

    def __post_init__(self) -> None:
        _require(self.members >= 1, f"a label head needs at least one member, not {self.members}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of a whole model, which determines all parameter shapes.

    Attributes:
        xp_transformer: a masked transformer as Gaia XP encoder in place of the autoencoder; as published, it
            is supported as a bare encoder only.
        decoder: None for the published "base" model, which has only the contrastive objective.
    """

    name: str = "paper"
    specformer: SpecFormerConfig = SpecFormerConfig()
    xp_autoencoder: XPAutoencoderConfig = XPAutoencoderConfig()
    xp_transformer: SpecFormerConfig | None = None
    projection: ProjectionConfig = ProjectionConfig()
    decoder: DecoderConfig | None = DecoderConfig()
    head: LabelHeadConfig = LabelHeadConfig()
    labels: tuple[str, ...] = ("fe_h",)
    lora1: LoRAConfig = LoRAConfig(rank=4, alpha=8.0)
    lora2: LoRAConfig = LoRAConfig(rank=8, alpha=16.0)
    lora3: LoRAConfig = LoRAConfig(rank=16, alpha=32.0)
    lora4: LoRAConfig = LoRAConfig(rank=8, alpha=16.0)

    def __post_init__(self) -> None:
        _require(
            len(self.labels) == self.head.num_labels,
            f"{len(self.labels)} label names for a head with {self.head.num_labels} outputs",
        )

    @property
    def loras(self) -> dict[str, LoRAConfig]:
        """The low-rank configurations of the four groups, by group name."""
        return {group: getattr(self, group) for group in LORA_GROUPS}


# The published Gaia XP masked transformer: one token per pixel after one with mean and std (not log10 std).
XP_TRANSFORMER = SpecFormerConfig(
    num_pixels=343,
    window=1,
    stride=1,
    drop_last=False,
    statistics=("mean", "std"),
    max_len=350,
    mask_width=20,
)


def _mini() -> ModelConfig:
    return ModelConfig(
        name="mini",
        # The usual single scaling: at head_dim 32 the published double scaling makes attention nearly flat.
        # Windows three times as wide as published: at low resolution, 20 pixels contain little but noise.
        specformer=SpecFormerConfig(
            window=60,
            stride=30,
            mask_width=1,
            dim=160,
            num_layers=2,
            num_heads=5,
            mlp_dim=640,
            logit_scale=32**-0.5,
            flux_scale=0.2,  # at low resolution, metal-poor giants are recognised by the depth of their lines
        ),
        xp_autoencoder=XPAutoencoderConfig(hidden_dim=256, latent_dim=96, expansion=2),
        projection=ProjectionConfig(shared_dim=128, feature_hidden=192),
        decoder=DecoderConfig(lamost_hidden=(256, 256, 256), gaia_xp_hidden=(256, 256, 128)),
        head=LabelHeadConfig(hidden_dims=(128, 64, 32), num_labels=3, members=4),
        labels=("teff", "logg", "fe_h"),
    )


def _mini_physics() -> ModelConfig:
    mini = _mini()
    return dataclasses.replace(
        mini,
        name="mini-physics",
        # Windows that do not overlap: what is hidden is in no visible token, and the tower takes half the
        # time.
        specformer=dataclasses.replace(mini.specformer, stride=60, mask_chunks=3, mask_width=5),
        head=dataclasses.replace(mini.head, num_labels=4),
        labels=("teff", "logg", "fe_h", "alpha_fe"),
    )


def _split() -> ModelConfig:
    return ModelConfig(
        name="split",
        projection=ProjectionConfig(shared_dim=512, private_dim=256),
        decoder=DecoderConfig(lamost_hidden=(2048, 2048, 2048), gaia_xp_hidden=(2048, 1024, 512)),
    )


PRESETS: Mapping[str, ModelConfig] = types.MappingProxyType(
    {
        "paper": ModelConfig(),
        "base": ModelConfig(name="base", decoder=None),
        "split": _split(),
        "xp-transformer": ModelConfig(name="xp-transformer", xp_transformer=XP_TRANSFORMER, decoder=None),
        "mini": _mini(),
        "mini-physics": _mini_physics(),
    }
)


def get_preset(name: str) -> ModelConfig:
    """Return a preset by name.

    Raises:
        ConfigError: there is no preset of this name.
    """
    _require(name in PRESETS, f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return a configuration as nested dicts and lists, as JSON stores it; the inverse of `from_dict`."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(data: Mapping[str, Any]) -> ModelConfig:
    """Build a configuration from the dict that `to_dict` returned; missing keys keep the "paper" value.

    Raises:
        ConfigError: an unknown key or a value of the wrong type, named by its dotted path.
    """
    return _build(ModelConfig, data, "config")


# Not dacite, which accepts True for an int, nor cattrs, which needs as much code for the paths in messages.
def _build(kind: type[T], data: Any, path: str) -> T:
    _require(isinstance(data, Mapping), f"{path} must be a mapping, not {data!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    _require(not unknown, f"unknown keys in {path}: {', '.join(unknown)}; known keys are {', '.join(hints)}")
    values = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise ConfigError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType):  # X | None
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        _require(isinstance(value, list | tuple), f"{path} must be a list, not {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, path) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    _require(type(value) is hint, f"{path} must be {hint.__name__}, not {value!r}")
    return value
