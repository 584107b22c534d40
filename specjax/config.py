"""Model configurations: frozen keyword-only dataclasses, two presets, and their JSON form.

`get_preset("paper")` has the published sizes of SpecCLIP ("pr"); `get_preset("mini")` is the small model that
ships with the package. Both read the same spectra: only widths and depths differ.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from specjax.errors import ConfigError

LORA_GROUPS = ("lora1", "lora2", "lora3", "lora4")


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
        """The factor alpha/rank in front of the low-rank product."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecFormerConfig:
    """A masked transformer over windows of a spectrum; the defaults are the LAMOST LRS encoder as published.

    statistics are the columns put in front of each window; row 0 holds their values and is zero elsewhere.
    drop_last keeps the published behaviour of losing the last window (and with it the last two LAMOST
    pixels). logit_scale is what q.k is multiplied by; None is the published 1/head_dim (scaled twice by
    head_dim^-1/2). With flux_scale the windows hold (flux - 1)/flux_scale, flux being over its continuum;
    None is the published form, in which each spectrum is divided by its own standard deviation: how deep its
    lines are is then known from the row of statistics alone.
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
        """Windows of a spectrum: starts at arange(0, num_pixels - overlap, stride), less the dropped last."""
        starts = range(0, self.num_pixels - (self.window - self.stride), self.stride)
        return len(starts) - int(self.drop_last)

    @property
    def num_tokens(self) -> int:
        """Rows of the token array: the windows and the row of statistics in front (146 for LAMOST)."""
        return self.num_windows + 1

    @property
    def token_dim(self) -> int:
        """Columns of the token array: the window and the columns of statistics (21 for LAMOST)."""
        return self.window + len(self.statistics)

    @property
    def attention_scale(self) -> float:
        """The factor on q.k before the softmax."""
        return self.num_heads / self.dim if self.logit_scale is None else self.logit_scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class XPAutoencoderConfig:
    """The Gaia XP autoencoder: num_pixels + 2 inputs (mean, std, standardised flux) to a latent vector."""

    num_pixels: int = 343
    hidden_dim: int = 1290
    latent_dim: int = 768
    expansion: int = 3
    num_blocks: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """The two networks into the contrastive space of dim = shared_dim + private_dim features.

    private_dim 0 is the published "base" and "pr" form; with it above 0 there is a second, private pair of
    networks beside the shared one ("split"). num_heads is per network: (shared, private).
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
        """The widths of the networks that exist: (shared,) or (shared, private)."""
        return (self.shared_dim, self.private_dim) if self.private_dim else (self.shared_dim,)

    @property
    def dim(self) -> int:
        """Width of the whole projected vector, shared then private."""
        return self.shared_dim + self.private_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Hidden widths of the decoders from the contrastive space to LAMOST and Gaia XP pixels."""

    lamost_hidden: tuple[int, ...] = (3072, 3072, 3072)
    gaia_xp_hidden: tuple[int, ...] = (3072, 1536, 768)
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelHeadConfig:
    """A regression head: (Linear, BatchNorm, ReLU, Dropout) for each hidden width, then Linear to the labels.

    members above 1 is a deep ensemble: that many independent heads on one leading axis, averaged.
    """

    hidden_dims: tuple[int, ...] = (1024, 512, 64)
    num_labels: int = 1
    dropout: float = 0.1
    members: int = 1

    def __post_init__(self) -> None:
        _require(self.members >= 1, f"a label head needs at least one member, not {self.members}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the shapes of a model; decoder None is the published "base", contrastive only.

    With xp_transformer the Gaia XP encoder is that masked transformer instead of the autoencoder; it exists
    as a bare encoder only, as published.
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
        """The four low-rank configurations by group name."""
        return {group: getattr(self, group) for group in LORA_GROUPS}


# The published Gaia XP masked transformer: one token a pixel, mean and std (not its logarithm) in the first.
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
        # Scaled once, as usual: with heads of 32 the published double scaling would leave attention flat.
        # Windows three times as wide as published: at low resolution 20 pixels hold little but noise.
        specformer=SpecFormerConfig(
            window=60,
            stride=30,
            mask_width=1,
            dim=160,
            num_layers=2,
            num_heads=5,
            mlp_dim=640,
            logit_scale=32**-0.5,
            flux_scale=0.2,  # at low resolution the depth of its lines is what gives a metal-poor giant away
        ),
        xp_autoencoder=XPAutoencoderConfig(hidden_dim=256, latent_dim=96, expansion=2),
        projection=ProjectionConfig(shared_dim=128, feature_hidden=192),
        decoder=DecoderConfig(lamost_hidden=(256, 256, 256), gaia_xp_hidden=(256, 256, 128)),
        head=LabelHeadConfig(hidden_dims=(128, 64, 32), num_labels=3, members=4),
        labels=("teff", "logg", "fe_h"),
    )


PRESETS: Mapping[str, ModelConfig] = types.MappingProxyType({"paper": ModelConfig(), "mini": _mini()})


def get_preset(name: str) -> ModelConfig:
    """Return the preset of that name.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return nested plain dicts and lists, ready for json.dump; `from_dict` is the inverse."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_dict(data: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that `to_dict` wrote; keys left out keep the "paper" value.

    Raises:
        ConfigError: a key that does not exist, or a value of the wrong kind, named by its dotted path.
    """
    return typing.cast(ModelConfig, _build(ModelConfig, data, "config"))


def _build(kind: type, data: Any, path: str) -> Any:
    _require(isinstance(data, Mapping), f"{path} must be a mapping, not {data!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    _require(not unknown, f"unknown keys in {path}: {', '.join(unknown)}; known are {', '.join(hints)}")
    values = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise ConfigError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        _require(isinstance(value, list | tuple), f"{path} must be a list, not {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], item, path) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    exact = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    _require(exact, f"{path} must be {hint.__name__}, not {value!r}")
    return value
