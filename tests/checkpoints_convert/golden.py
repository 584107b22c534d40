"""Small networks with weights that are generated from their names, for the golden numbers of test_golden.py.

The numbers were computed with the PyTorch modules of tests/models/published.py in float64.
"""

import zlib

import numpy as np

from checkpoints_convert.export import encoder_hyper_parameters
from checkpoints_convert.keys import table
from specjax.config import (
    DecoderConfig,
    LabelHeadConfig,
    ModelConfig,
    ProjectionConfig,
    SpecFormerConfig,
    XPAutoencoderConfig,
)

_FORMER = SpecFormerConfig(dim=6, num_layers=1, num_heads=2, mlp_dim=8, max_len=150)
_PR = ModelConfig(
    specformer=SpecFormerConfig(num_pixels=61, dim=6, num_layers=1, num_heads=2, mlp_dim=8, max_len=9),
    xp_autoencoder=XPAutoencoderConfig(num_pixels=11, hidden_dim=5, latent_dim=6, expansion=2, num_blocks=1),
    projection=ProjectionConfig(shared_dim=6, num_heads=(3,), mlp_expansion=2, feature_hidden=6),
    decoder=DecoderConfig(lamost_hidden=(6, 6, 6), gaia_xp_hidden=(6, 6, 6)),
    head=LabelHeadConfig(hidden_dims=(6, 6, 6)),
)
_SPLIT = ModelConfig(
    specformer=_PR.specformer,
    xp_autoencoder=_PR.xp_autoencoder,
    projection=ProjectionConfig(
        shared_dim=4, private_dim=2, num_heads=(2, 1), mlp_expansion=2, feature_hidden=4
    ),
    decoder=DecoderConfig(lamost_hidden=(4, 4, 4), gaia_xp_hidden=(4, 4, 4)),
)
CONFIGS = {
    "lamost": ModelConfig(specformer=_FORMER, decoder=None),
    "xp_autoencoder": _PR,
    "pr": _PR,
    "split": _SPLIT,
    "head": _PR,
}
PARTS = {
    "lamost": "lamost",
    "xp_autoencoder": "gaia_xp",
    "pr": "specclip",
    "split": "specclip",
    "head": "mlp2",
}


def state_of(kind):
    """Return a state_dict with the published names, as arrays."""
    return {row.key: _weights(row.key, row.shape) for row in table(CONFIGS[kind], [PARTS[kind]])}


def _weights(key, shape):
    u = np.random.default_rng(zlib.crc32(key.encode())).random(shape) * 2 - 1
    name = key.rpartition(".")[2]
    if len(shape) == 1:
        scales = name == "running_var" or (name == "weight")
        return (scales + 0.4 * u).astype(np.float32)
    u *= np.sqrt(3 / shape[-1])
    if "q_proj.weight" in key:
        u *= 20  # so that attention is far from uniform
    if any(part in key for part in ("data_embed", "position_embed", "bottleneck_down", "input_proj")):
        u *= 0.02  # so that the variances in a LayerNorm are comparable to its epsilon
    return u.astype(np.float32)


def content_of(kind):
    """Return the content of the published file."""
    state, config = state_of(kind), CONFIGS[kind]
    if kind == "head":
        return {"model_state_dict": state}
    former = encoder_hyper_parameters(config.specformer)
    if kind != "lamost" and kind != "xp_autoencoder":
        names = ("shared_attention", "private_attention") if kind == "split" else ("cross_attention",)
        pools = {
            name: {"multihead_attn": {"num_heads": heads}}
            for name, heads in zip(names, config.projection.num_heads, strict=True)
        }
        former = {"lamost_lrs_encoder": {"backbone": former, **pools}}
    return {"state_dict": state, "hyper_parameters": former}


def flux(pixels):
    """Return two spectra (2, pixels)."""
    x = np.arange(pixels)
    return np.stack([1 + 0.3 * np.sin(0.37 * x), 0.9 + 0.2 * np.cos(0.11 * x * (1 + x / pixels))]).astype(
        np.float32
    )
