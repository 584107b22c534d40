"""Recognise the published network in a file and determine its configuration.

Sizes follow from the shapes of the tensors. Windows and numbers of attention heads, which do not, are taken
from the hyper-parameters, which may contain pickled modules.
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

# Numbers of attention heads of the published networks, by width.
_PUBLISHED_HEADS = {"backbone": {768: 6}, "projection": {768: 4, 512: 4, 256: 2}}
_HEAD_NAMES = ("num_heads", "n_heads", "n_head")
_LAMOST_PIXELS = SpecFormerConfig().num_pixels


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A recognised network.

    Attributes:
        title: Its name, for messages.
        part: The part of `keys.table` that lists its tensors.
        config: Its configuration.
    """

    title: str
    part: str
    config: ModelConfig


def recognise(shapes: Shapes, hyper_parameters: Mapping[str, Any]) -> Recognised:
    """Return the network that a state_dict belongs to, with its sizes.

    Args:
        shapes: Shapes of the tensors, by key.
        hyper_parameters: Hyper-parameters of the Lightning file; {} if there are none.

    Raises:
        ModelError: The file contains no published network, does not specify a size, or has impossible sizes.
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
        raise ModelError(f"its sizes are impossible: {error}") from None
    raise ModelError("it contains none of the published SpecCLIP networks")


_NAMED = ModelConfig(decoder=None)


@dataclass(frozen=True)
class _Sizes:
    shapes: Shapes
    hyper_parameters: Mapping[str, Any]

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.shapes)

    def of(self, key: str, axis: int) -> int:
        """Return the length of a tensor along an axis."""
        shape = self.shapes.get(key)
        if shape is None:
            raise ModelError(f"it lacks {key}, which determines its sizes")
        if len(shape) <= axis or shape[axis] < 1:
            raise ModelError(f"{key} has the invalid shape {list(shape)}")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """Count the different values of the group of a pattern in the keys."""
        return len({match[1] for key in self.shapes if (match := re.match(pattern, key))})

    def sequence(self, prefix: str, step: int) -> tuple[int, ...]:
        """Return the output widths of the Linears in a Sequential, one every `step` modules."""
        indices = sorted(
            int(match[1])
            for key in self.shapes
            if (match := re.fullmatch(rf"{re.escape(prefix)}(\d{{1,4}})\.weight", key))
        )
        return tuple(self.of(f"{prefix}{i}.weight", 0) for i in indices if i % step == 0)

    def number(self, name: str, module: str = "") -> int | None:
        """Return an integer hyper-parameter of a module ("a.b.") or of the innermost parent that has it."""
        found = None
        for node in self.nodes(module):
            value = node.get(name)
            if type(value) is int:
                found = value
        return found

    def nodes(self, module: str) -> Iterator[Mapping[str, Any]]:
        """Yield the attributes of the hyper-parameters and of each module on the path, outermost first."""
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
        """Return the number of attention heads of a module; published widths have published numbers."""
        first, _, rest = module.partition(".")
        for tower in dict.fromkeys((first, *map(str, self.hyper_parameters))) if rest else (first,):
            found = self._heads_of(kind, f"{tower}.{rest}")
            if found is not None:
                return found
        if dim in _PUBLISHED_HEADS[kind]:
            return _PUBLISHED_HEADS[kind][dim]
        where = module.rstrip(".")
        raise ModelError(f"it does not specify the number of attention heads of {where} (width {dim})")

    def _heads_of(self, kind: str, module: str) -> int | None:
        for name in _HEAD_NAMES:
            found = self.number(name, module)
            # The top-level hyper-parameters of a file describe its backbone, not a projection.
            if found is not None and (kind == "backbone" or self._is_inside(name, module)):
                if found < 1:
                    raise ModelError(f"it gives {module} {found} attention heads")
                return found
        return None

    def _is_inside(self, name: str, module: str) -> bool:
        return any(type(node.get(name)) is int for node in list(self.nodes(module))[3:])


def _attributes(node: Any) -> Mapping[str, Any]:
    """Return the attributes of a pickled object or the items of a dict."""
    if isinstance(node, Opaque):
        state = node.state if isinstance(node.state, dict) else {}
        return {**state, **node.items} if node.items else state
    return node if isinstance(node, dict) else {}


def _backbone(sizes: _Sizes, prefix: str, pixels: int = _LAMOST_PIXELS) -> SpecFormerConfig:
    """Determine the sizes of a masked transformer, of Gaia XP if its tokens have two statistics."""
    token_dim, dim = sizes.of(f"{prefix}data_embed.weight", 1), sizes.of(f"{prefix}data_embed.weight", 0)
    window = sizes.number("slice_section_length", prefix)
    overlap = sizes.number("slice_overlap", prefix)
    is_xp = token_dim == XP_TRANSFORMER.token_dim
    if is_xp:
        base = replace(XP_TRANSFORMER, dim=1, num_heads=1)
    else:
        window = token_dim - 1 if window is None else window
        if overlap is None and window != SpecFormerConfig().window:
            raise ModelError(f"it does not specify the overlap of its windows of {window} pixels")
        stride = SpecFormerConfig().stride if overlap is None else window - overlap
        if token_dim != window + 1:
            raise ModelError(f"its tokens have {token_dim} columns for windows of {window} pixels")
        base = replace(SpecFormerConfig(max_len=1 << 40), num_pixels=pixels, window=window, stride=stride)
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
            "its Gaia XP tower is a masked transformer, which is supported only as a bare encoder"
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
