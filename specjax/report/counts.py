"""Numbers of parameters from the sizes of a model alone, as `specjax info --preset` prints them.

No module is made and JAX is not imported, so that a count takes no time. The tests compare with the modules.
"""

from collections.abc import Iterator
from itertools import pairwise

from specjax.config import DecoderConfig, LabelHeadConfig, ModelConfig, SpecFormerConfig, XPAutoencoderConfig

Layer = tuple[int, int]
"""Inputs and outputs of a dense layer."""


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of a model's parts and of its LoRA groups.

    Returns:
        lamost_encoder, xp_autoencoder, lora1 to lora4, label_head (MLP2; MLP1 has as many where both read
        vectors of the same width), and specclip: both towers with their projections and decoders.
    """
    tower, head = config.specformer, config.head
    lamost_encoder, xp_autoencoder = _specformer(tower), _xp_autoencoder(config.xp_autoencoder)
    towers = lamost_encoder + xp_autoencoder + _lamost_projection(config) + _xp_projection(config)
    factors = {
        "lora1": [layer for _ in range(tower.num_layers) for layer in _attention(tower.dim)],
        "lora2": list(_head_layers(head, tower.dim)),
        "lora3": [
            layer
            for dim in config.projection.dims
            for layer in ((dim, dim), *_mlp(dim, _expanded(config, dim)))
        ],
        "lora4": list(_head_layers(head, config.projection.dim)),
    }
    copies = {"lora2": head.members, "lora4": head.members}
    return {
        "lamost_encoder": lamost_encoder,
        "xp_autoencoder": xp_autoencoder,
        **{
            group: copies.get(group, 1) * sum(config.loras[group].rank * sum(layer) for layer in layers)
            for group, layers in factors.items()
        },
        "label_head": head.members * _label_head(head, config.projection.dim),
        "specclip": towers + (0 if config.decoder is None else _decoders(config, config.decoder)),
    }


def _dense(*layers: Layer) -> int:
    return sum(inputs * outputs + outputs for inputs, outputs in layers)


def _norm(width: int) -> int:
    return 2 * width


def _mlp(dim: int, hidden: int) -> tuple[Layer, Layer]:
    return (dim, hidden), (hidden, dim)


def _attention(dim: int) -> tuple[Layer, Layer, Layer]:
    return (dim, dim), (dim, 2 * dim), (dim, dim)


def _specformer(config: SpecFormerConfig) -> int:
    dim = config.dim
    block = _dense(*_attention(dim), *_mlp(dim, config.mlp_dim)) + 2 * _norm(dim)
    ends = _dense((config.token_dim, dim), (dim, config.token_dim))
    return ends + config.max_len * dim + config.num_layers * block + _norm(dim)


def _xp_autoencoder(config: XPAutoencoderConfig) -> int:
    width, vector, latent = config.hidden_dim, config.num_pixels + 2, config.latent_dim
    block = _norm(width) + _dense(*_mlp(width, config.expansion * width))
    ends = _dense((vector, width), (width, latent), (latent, width), (width, vector))
    return ends + 2 * config.num_blocks * block + _norm(latent)


def _expanded(config: ModelConfig, dim: int) -> int:
    return config.projection.mlp_expansion * dim


def _lamost_projection(config: ModelConfig) -> int:
    inputs, count = config.specformer.dim, 0
    for dim in config.projection.dims:
        pool = dim + _dense((dim, dim), (inputs, dim), (inputs, dim), (dim, dim)) + _norm(dim)
        count += pool + _dense(*_mlp(dim, _expanded(config, dim)))
    return count


def _xp_projection(config: ModelConfig) -> int:
    latent, hidden, count = config.xp_autoencoder.latent_dim, config.projection.feature_hidden, 0
    for dim in config.projection.dims:
        features = _dense((dim, hidden), (hidden, dim)) + _norm(hidden) + _norm(dim)
        count += _dense((latent, dim), *_mlp(dim, _expanded(config, dim))) + features
    return count


def _decoders(config: ModelConfig, decoder: DecoderConfig) -> int:
    """Count the decoders of both surveys: from the shared part to the other one, and of its own."""
    projection, count = config.projection, 0
    for hidden, pixels in (
        (decoder.lamost_hidden, config.specformer.num_pixels),
        (decoder.gaia_xp_hidden, config.xp_autoencoder.num_pixels),
    ):
        cross = _plain_decoder(projection.shared_dim, hidden, pixels)
        if projection.private_dim:
            parts = (projection.shared_dim, pixels), (projection.private_dim, pixels)
            count += cross + _dense(*parts, (2 * pixels, 2 * pixels), (2 * pixels, pixels))
        else:
            count += 2 * cross
    return count


def _plain_decoder(inputs: int, hidden: tuple[int, ...], pixels: int) -> int:
    return _dense(*pairwise((inputs, *hidden, pixels))) + sum(map(_norm, hidden))


def _head_layers(config: LabelHeadConfig, inputs: int) -> Iterator[Layer]:
    return iter(pairwise((inputs, *config.hidden_dims, config.num_labels)))


def _label_head(config: LabelHeadConfig, inputs: int) -> int:
    """Count a member of the ensemble."""
    return _dense(*_head_layers(config, inputs)) + sum(map(_norm, config.hidden_dims))
