"""How many floating-point operations and bytes the work takes, on paper: 2 for each product of a sum.

A step through frozen layers needs the forward products and those of the gradients of the activations, as many
again; a step that trains everything needs a third set, the gradients of the weights.
"""

import itertools

from specjax.config import ModelConfig, SpecFormerConfig


def lamost_tower(config: SpecFormerConfig) -> float:
    """FLOPs of one spectrum through the encoder."""
    tokens, dim = config.num_tokens, config.dim
    block = tokens * dim * (4 * dim + 2 * config.mlp_dim) + 2 * tokens**2 * dim
    return 2.0 * (tokens * config.token_dim * dim + config.num_layers * block)


def lamost_projection(config: ModelConfig) -> float:
    """FLOPs of the tokens of one spectrum to the contrastive space, pooled by one query."""
    return mixing(config) + after_mixing(config)


def mixing(config: ModelConfig) -> float:
    """FLOPs of the pooling up to what LoRA3 adapts, by one query."""
    tokens, inputs = config.specformer.num_tokens, config.specformer.dim
    heads = zip(config.projection.dims, config.projection.num_heads, strict=False)
    return 2.0 * sum(2 * tokens * count * inputs + inputs * dim for dim, count in heads)


def after_mixing(config: ModelConfig) -> float:
    """FLOPs of the projection from there on."""
    return 2.0 * sum(dim**2 * (1 + 2 * config.projection.mlp_expansion) for dim in config.projection.dims)


def xp_tower(config: ModelConfig) -> float:
    """FLOPs of one Gaia XP spectrum to its latent."""
    xp = config.xp_autoencoder
    blocks = xp.num_blocks * 2 * xp.expansion * xp.hidden_dim**2
    return 2.0 * ((xp.num_pixels + 2) * xp.hidden_dim + blocks + xp.hidden_dim * xp.latent_dim)


def head_layers(config: ModelConfig, inputs: int) -> list[float]:
    """FLOPs of each dense layer of a label head for one star."""
    widths = [inputs, *config.head.hidden_dims, config.head.num_labels]
    return [2.0 * config.head.members * a * b for a, b in itertools.pairwise(widths)]


def head_run(config: ModelConfig, inputs: int, stars: int, steps: int) -> float:
    """FLOPs of a LoRA2 or LoRA4 run: the first base product once, the others there and back a step."""
    first, *others = head_layers(config, inputs)
    return stars * (first + steps * 2 * sum(others))
