"""Which published network a file holds, and its sizes.

They come from the shapes and, for what shapes do not say (windows, numbers of attention heads), from the
hyper-parameters, where whole modules may be pickled.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from checkpoints_convert.unpickle import Opaque
from specjax.config import (
    XP_TRANSFORMER,
    DecoderConfig,
    LabelHeadConfig,
    ModelConfig,
    ProjectionConfig,
    SpecFormerConfig,
    XPAutoencoderConfig,
)
from specjax.errors import ConfigError, ModelError

Shapes = Mapping[str, tuple[int, ...]]

# Numbers of heads of the published networks, by the width of what attends.
_PUBLISHED_HEADS = {"backbone": {768: 6}, "projection": {768: 4, 512: 4, 256: 2}}
_HEAD_NAMES = ("num_heads", "n_heads", "n_head")
_LAMOST_PIXELS = SpecFormerConfig().num_pixels


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What a file is: a title for people, the part of `keys.table` that lists it, and its configuration."""

    title: str
    part: str
    config: ModelConfig


def recognise(shapes: Shapes, hyper_parameters: Mapping[str, Any]) -> Recognised:
    """Say which network a state_dict belongs to and how large it is.

    Args:
        shapes: of the tensors, by key.
        hyper_parameters: of the Lightning file, {} where there are none.

    Raises:
        ModelError: no published network, a size that the file does not say, or sizes that no network has.
    """
    sizes = _Sizes(shapes, hyper_parameters)
    try:
        if sizes.has("lamost_lrs_encoder.") and sizes.has("gaia_xp_encoder."):
            return _specclip(sizes)
        if sizes.has("data_embed."):
            return _transformer(sizes)
        if sizes.has("bottleneck_down."):
            return Recognised(
                title="Gaia XP autoencoder",
                part="gaia_xp",
                config=replace(_NAMED, name="xp_autoencoder", xp_autoencoder=_autoencoder(sizes, "")),
            )
        if sizes.has("network.0."):
            return _label_head(sizes)
    except (ConfigError, ZeroDivisionError) as error:
        raise ModelError(f"its sizes belong to no network: {error}") from None
    raise ModelError("it holds none of the published SpecCLIP networks")


_NAMED = ModelConfig(decoder=None)


@dataclass(frozen=True)
class _Sizes:
    shapes: Shapes
    hyper_parameters: Mapping[str, Any]

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.shapes)

    def of(self, key: str, axis: int) -> int:
        """A length in the shape of a key."""
        shape = self.shapes.get(key)
        if shape is None:
            raise ModelError(f"it lacks {key}, from which its sizes are read")
        if len(shape) <= axis or shape[axis] < 1:
            raise ModelError(f"{key} has the shape {list(shape)}")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many numbers stand at the group of a pattern."""
        return len({match[1] for key in self.shapes if (match := re.match(pattern, key))})

    def sequence(self, prefix: str, step: int) -> tuple[int, ...]:
        """The widths of the Linears at every `step` of a Sequential."""
        indices = sorted(
            int(match[1])
            for key in self.shapes
            if (match := re.fullmatch(rf"{re.escape(prefix)}(\d{{1,4}})\.weight", key))
        )
        return tuple(self.of(f"{prefix}{i}.weight", 0) for i in indices if i % step == 0)

    def number(self, name: str, module: str = "") -> int | None:
        """A whole number that the hyper-parameters give for a module ("a.b.") or what it is in."""
        found = None
        for node in self.nodes(module):
            value = node.get(name)
            if type(value) is int:
                found = value
        return found

    def nodes(self, module: str) -> Iterator[Mapping[str, Any]]:
        """The attributes of each module on the way, from the hyper-parameters inwards."""
        node: Any = self.hyper_parameters
        for step in ("", *module.split(".")):
            if step:
                attributes = _attributes(node)
                children = attributes.get("_modules")
                node = children.get(step) if isinstance(children, dict) and step in children else None
                node = attributes.get(step) if node is None else node
            attributes = _attributes(node)
            for own in ("_hparams", "hparams"):
                yield _attributes(attributes.get(own))
            yield attributes

    def heads(self, kind: str, module: str, dim: int) -> int:
        """The number of attention heads of a module."""
        first, _, rest = module.partition(".")
        for tower in dict.fromkeys((first, *map(str, self.hyper_parameters))) if rest else (first,):
            found = self._heads_of(kind, f"{tower}.{rest}")
            if found is not None:
                return found
        if dim in _PUBLISHED_HEADS[kind]:
            return _PUBLISHED_HEADS[kind][dim]
        where = module.rstrip(".")
        raise ModelError(f"it does not say how many attention heads {where} has, of width {dim}")

    def _heads_of(self, kind: str, module: str) -> int | None:
        for name in _HEAD_NAMES:
            found = self.number(name, module)
            # What a whole file says at its top is about its backbone, not about a projection.
            if found is not None and (kind == "backbone" or self._is_said_inside(name, module)):
                if found < 1:
                    raise ModelError(f"it gives {found} attention heads to {module}")
                return found
        return None

    def _is_said_inside(self, name: str, module: str) -> bool:
        return any(type(node.get(name)) is int for node in list(self.nodes(module))[3:])


def _attributes(node: Any) -> Mapping[str, Any]:
    """What a pickled object or a dict says about itself."""
    if isinstance(node, Opaque):
        state = node.state if isinstance(node.state, dict) else {}
        return {**state, **node.items} if node.items else state
    return node if isinstance(node, dict) else {}


def _backbone(sizes: _Sizes, prefix: str, pixels: int = _LAMOST_PIXELS) -> SpecFormerConfig:
    """Read the sizes of a masked transformer, of LAMOST unless its tokens carry mean and std."""
    token_dim, dim = sizes.of(f"{prefix}data_embed.weight", 1), sizes.of(f"{prefix}data_embed.weight", 0)
    window = sizes.number("slice_section_length", prefix)
    stride_known = sizes.number("slice_overlap", prefix)
    is_xp = token_dim == XP_TRANSFORMER.token_dim
    if is_xp:
        base = replace(XP_TRANSFORMER, dim=1, num_heads=1)
    else:
        window = token_dim - 1 if window is None else window
        if stride_known is None and window != SpecFormerConfig().window:
            raise ModelError(f"it does not say by how much its windows of {window} pixels overlap")
        overlap = window - SpecFormerConfig().stride if stride_known is None else stride_known
        if token_dim != window + 1:
            raise ModelError(f"its tokens have {token_dim} columns for windows of {window} pixels")
        base = replace(
            SpecFormerConfig(max_len=1 << 40), num_pixels=pixels, window=window, stride=window - overlap
        )
    heads = sizes.heads("backbone", f"{prefix}blocks.0.attention." if prefix else "blocks.0.attention.", dim)
    if dim % heads:
        raise ModelError(f"its width {dim} is not divisible by {heads} attention heads")
    return replace(
        base,
        dim=dim,
        num_heads=heads,
        num_layers=sizes.count(re.escape(prefix) + r"blocks\.(\d+)\."),
        mlp_dim=sizes.of(f"{prefix}blocks.0.mlp.0.weight", 0),
        max_len=sizes.of(f"{prefix}position_embed.weight", 0),
        mask_chunks=sizes.number("mask_num_chunks", prefix) or base.mask_chunks,
        mask_width=sizes.number("mask_chunk_width", prefix) or base.mask_width,
    )


def _transformer(sizes: _Sizes) -> Recognised:
    backbone = _backbone(sizes, "")
    if backbone.statistics == XP_TRANSFORMER.statistics:
        config = replace(_NAMED, name="xp_transformer", xp_transformer=backbone)
        return Recognised(title="Gaia XP masked transformer", part="gaia_xp", config=config)
    config = replace(_NAMED, name="lamost_encoder", specformer=backbone)
    return Recognised(title="LAMOST masked transformer", part="lamost", config=config)


def _autoencoder(sizes: _Sizes, prefix: str) -> XPAutoencoderConfig:
    width = sizes.of(f"{prefix}input_proj.weight", 0)
    hidden = sizes.of(f"{prefix}encoder_blocks.0.mlp.0.weight", 0)
    return XPAutoencoderConfig(
        num_pixels=sizes.of(f"{prefix}input_proj.weight", 1) - 2,
        hidden_dim=width,
        latent_dim=sizes.of(f"{prefix}bottleneck_down.weight", 0),
        expansion=hidden // width,
        num_blocks=sizes.count(re.escape(prefix) + r"encoder_blocks\.(\d+)\."),
    )


def _specclip(sizes: _Sizes) -> Recognised:
    lamost, xp = "lamost_lrs_encoder.", "gaia_xp_encoder."
    if sizes.has(f"{xp}backbone.data_embed."):
        raise ModelError(
            "its Gaia XP tower is the masked transformer, which is supported as a bare encoder only"
        )
    split = sizes.has(f"{lamost}shared_attention.")
    decoder, pixels, name = None, _LAMOST_PIXELS, "base"
    if sizes.has("lamost_lrs_cross_decoder."):
        name = "split" if split else "pr"
        hidden = [sizes.sequence(f"{tower}_cross_decoder.decoder.", 4) for tower in ("lamost_lrs", "gaia_xp")]
        decoder = DecoderConfig(lamost_hidden=hidden[0][:-1], gaia_xp_hidden=hidden[1][:-1])
        pixels = hidden[0][-1] if hidden[0] else pixels
    elif split:
        name = "split without decoders"
    config = replace(
        _NAMED,
        name=f"specclip_{name.partition(' ')[0]}",
        specformer=_backbone(sizes, f"{lamost}backbone.", pixels),
        xp_autoencoder=_autoencoder(sizes, f"{xp}backbone."),
        projection=_projection(sizes, split),
        decoder=decoder,
    )
    return Recognised(title=f"SpecCLIP {name}", part="specclip", config=config)


def _projection(sizes: _Sizes, split: bool) -> ProjectionConfig:
    lamost, xp = "lamost_lrs_encoder.", "gaia_xp_encoder."
    pools = ("shared_attention", "private_attention") if split else ("cross_attention",)
    dims = [sizes.of(f"{lamost}{pool}.query", 2) for pool in pools]
    heads = [
        sizes.heads("projection", f"{lamost}{pool}.multihead_attn.", dim)
        for pool, dim in zip(pools, dims, strict=True)
    ]
    part = "shared_" if split else ""
    return ProjectionConfig(
        shared_dim=dims[0],
        private_dim=dims[1] if split else 0,
        num_heads=tuple(heads),
        mlp_expansion=sizes.of(f"{lamost}{part}mlp.encoder.weight", 0) // dims[0],
        feature_hidden=sizes.of(f"{xp}{part}feature_mlp.0.weight", 0),
    )


def _label_head(sizes: _Sizes) -> Recognised:
    widths = sizes.sequence("network.", 4)
    inputs = sizes.of("network.0.weight", 1)
    config = replace(
        _NAMED,
        name="label_head",
        specformer=SpecFormerConfig(dim=inputs, num_heads=1),
        projection=ProjectionConfig(shared_dim=inputs, num_heads=(1,)),
        head=LabelHeadConfig(hidden_dims=widths[:-1], num_labels=widths[-1]),
        labels=tuple(f"label_{i}" for i in range(widths[-1])),
    )
    return Recognised(title="label head", part="mlp2", config=config)
