"""Files as the published code writes them, made with our own PyTorch modules, small or full size."""

import dataclasses

import torch

from checkpoints_convert.export import encoder_hyper_parameters
from specjax.config import (
    XP_TRANSFORMER,
    DecoderConfig,
    LabelHeadConfig,
    ModelConfig,
    ProjectionConfig,
    SpecFormerConfig,
    XPAutoencoderConfig,
)
from tests.models import published

# Unusual widths and depths, and unusual grids where a file specifies them: with decoders, or for Gaia XP.
LAMOST = SpecFormerConfig(dim=24, num_layers=2, num_heads=3, mlp_dim=40, max_len=147, mask_width=7)
XP = dataclasses.replace(XP_TRANSFORMER, dim=20, num_layers=1, num_heads=2, mlp_dim=36, max_len=345)
PR = ModelConfig(
    specformer=dataclasses.replace(LAMOST, num_pixels=187),
    xp_autoencoder=XPAutoencoderConfig(
        num_pixels=41, hidden_dim=22, latent_dim=18, expansion=3, num_blocks=1
    ),
    projection=ProjectionConfig(shared_dim=24, num_heads=(2,), mlp_expansion=3, feature_hidden=26),
    decoder=DecoderConfig(lamost_hidden=(30, 26, 18), gaia_xp_hidden=(26, 18, 14)),
    head=LabelHeadConfig(hidden_dims=(17, 12, 9), num_labels=1),
)
SPLIT = dataclasses.replace(
    PR,
    projection=ProjectionConfig(shared_dim=16, private_dim=10, num_heads=(4, 5), feature_hidden=14),
)
_PAPER_SPLIT = ModelConfig(
    projection=ProjectionConfig(shared_dim=512, private_dim=256),
    decoder=DecoderConfig(lamost_hidden=(2048, 2048, 2048), gaia_xp_hidden=(2048, 1024, 512)),
)

KINDS = ("lamost", "xp_transformer", "xp_autoencoder", "base", "pr", "split", "head")
PARTS = dict(
    zip(KINDS, ("lamost", "gaia_xp", "gaia_xp", "specclip", "specclip", "specclip", "mlp2"), strict=True)
)


def sizes(kind, real=False):
    """Return the configuration of the network of a kind, small or as published."""
    config = (_PAPER_SPLIT if real else SPLIT) if kind == "split" else ModelConfig() if real else PR
    if kind == "xp_transformer":
        return dataclasses.replace(config, xp_transformer=XP_TRANSFORMER if real else XP)
    if kind in ("lamost", "base") and not real:
        config = dataclasses.replace(config, specformer=LAMOST)
    return dataclasses.replace(config, decoder=None) if kind == "base" else config


def make(kind, seed=0, real=False):
    """Return the published module of a kind, with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = sizes(kind, real)
    module = {
        "lamost": lambda: published.SpecFormer(config.specformer),
        "xp_transformer": lambda: published.SpecFormer(config.xp_transformer),
        "xp_autoencoder": lambda: published.XPAutoencoder(config.xp_autoencoder),
        "head": lambda: published.ParamRegressor(config.projection.dim, config.head),
    }.get(kind, lambda: published.SpecCLIP(config))()
    return published.randomised(module, seed)


def save(path, kind, module):
    """Write a module like its published file: encoders with sizes as numbers, towers as pickled modules."""
    state = module.state_dict()
    if kind == "head":
        torch.save({"model_state_dict": state, "epoch": 3}, path)
        return path
    hyper_parameters = {}
    if kind in ("lamost", "xp_transformer"):
        hyper_parameters = encoder_hyper_parameters(module.config)
    elif kind != "xp_autoencoder":
        # Lightning stores the pickled towers, whose modules have the number of heads as an attribute.
        for block in module.lamost_lrs_encoder.backbone.blocks:
            block.attention.num_heads = block.attention.heads
        hyper_parameters = {
            "lamost_lrs_encoder": module.lamost_lrs_encoder,
            "gaia_xp_encoder": module.gaia_xp_encoder,
            "lr": 1e-4,
        }
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    content = {
        "epoch": 7,
        "global_step": 980,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": hyper_parameters,
        "hparams_name": "kwargs",
    }
    torch.save(content, path)
    return path
