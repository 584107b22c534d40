"""Floating-point operations (FLOPs) of matrix products, counted on paper: 2 per multiply-add.

A training step through frozen layers takes the forward products and as many for the gradients of the
activations; a step that trains everything takes as many again for the gradients of the weights.
"""

import itertools

from specjax.config import ModelConfig, SpecFormerConfig


def lamost_tower(config: SpecFormerConfig) -> float:
    """FLOPs of the LAMOST encoder, per spectrum."""
    tokens, dim = config.num_tokens, config.dim
    block = tokens * dim * (4 * dim + 2 * config.mlp_dim) + 2 * tokens**2 * dim
    return 2.0 * (tokens * config.token_dim * dim + config.num_layers * block)


def lamost_projection(config: ModelConfig) -> float:
    """FLOPs of the projection from tokens, pooled by one query, to the contrastive space, per spectrum."""
    return mixing(config) + after_mixing(config)


def mixing(config: ModelConfig) -> float:
    """FLOPs of the pooling by one query, before the layers that LoRA3 adapts."""
    tokens, inputs = config.specformer.num_tokens, config.specformer.dim
    heads = zip(config.projection.dims, config.projection.num_heads, strict=False)
    return 2.0 * sum(2 * tokens * count * inputs + inputs * dim for dim, count in heads)


def after_mixing(config: ModelConfig) -> float:
    """FLOPs of the projection after the pooling."""
    return 2.0 * sum(dim**2 * (1 + 2 * config.projection.mlp_expansion) for dim in config.projection.dims)


def xp_tower(config: ModelConfig) -> float:
    """FLOPs of the Gaia XP encoder, per spectrum."""
    xp = config.xp_autoencoder
    blocks = xp.num_blocks * 2 * xp.expansion * xp.hidden_dim**2
    return 2.0 * ((xp.num_pixels + 2) * xp.hidden_dim + blocks + xp.hidden_dim * xp.latent_dim)


def head_layers(config: ModelConfig, inputs: int) -> list[float]:
    """FLOPs of each dense layer of a label head, per star."""
    widths = [inputs, *config.head.hidden_dims, config.head.num_labels]
    return [2.0 * config.head.members * a * b for a, b in itertools.pairwise(widths)]


def head_run(config: ModelConfig, inputs: int, stars: int, steps: int) -> float:
    """FLOPs of a LoRA2 or LoRA4 run: the first base product once, the others forward and back per step."""
    first, *others = head_layers(config, inputs)
    return stars * (first + steps * 2 * sum(others))
