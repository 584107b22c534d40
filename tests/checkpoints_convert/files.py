"""Files as the published code would have written them, of small odd sizes, from our own PyTorch modules."""

import dataclasses

import torch

from specjax.config import (
    DecoderConfig,
    LabelHeadConfig,
    ModelConfig,
    ProjectionConfig,
    SpecFormerConfig,
    XPAutoencoderConfig,
)
from tests.models import published

# The windows of a spectrum are on the model grid; widths and depths are free.
LAMOST = SpecFormerConfig(dim=24, num_layers=2, num_heads=3, mlp_dim=40, max_len=147, mask_width=7)
XP = SpecFormerConfig(
    num_pixels=343,
    window=1,
    stride=1,
    drop_last=False,
    statistics=("mean", "std"),
    dim=20,
    num_layers=3,
    num_heads=2,
    mlp_dim=36,
    max_len=345,
    mask_width=20,
)
PR = ModelConfig(
    specformer=LAMOST,
    xp_autoencoder=XPAutoencoderConfig(hidden_dim=22, latent_dim=18, expansion=3, num_blocks=3),
    projection=ProjectionConfig(shared_dim=24, num_heads=(2,), mlp_expansion=3, feature_hidden=26),
    decoder=DecoderConfig(lamost_hidden=(30, 26, 18), gaia_xp_hidden=(26, 18, 14)),
)
BASE = dataclasses.replace(PR, decoder=None)
SPLIT = dataclasses.replace(
    PR,
    projection=ProjectionConfig(shared_dim=16, private_dim=10, num_heads=(4, 5), feature_hidden=14),
)
HEAD = LabelHeadConfig(hidden_dims=(17, 12, 9), num_labels=1)


def make(kind, seed=0, inputs=24):
    """Return the published module of a kind, with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    module = {
        "lamost": lambda: published.SpecFormer(LAMOST),
        "xp_transformer": lambda: published.SpecFormer(XP),
        "xp_autoencoder": lambda: published.XPAutoencoder(PR.xp_autoencoder),
        "base": lambda: _without_decoders(published.SpecCLIP(PR)),
        "pr": lambda: published.SpecCLIP(PR),
        "split": lambda: published.SpecCLIP(SPLIT),
        "head": lambda: published.ParamRegressor(inputs, HEAD),
    }[kind]()
    return published.randomised(module, seed)


KINDS = ("lamost", "xp_transformer", "xp_autoencoder", "base", "pr", "split", "head")


def _without_decoders(module):
    for name in list(module._modules):
        if name.endswith("decoder"):
            delattr(module, name)
    return module


def save(path, kind, module):
    """Write a module as its published file: the encoders' sizes as numbers, the towers pickled as modules."""
    state = module.state_dict()
    if kind == "head":
        torch.save({"model_state_dict": state, "epoch": 3}, path)
        return path
    hyper_parameters = {}
    if kind in ("lamost", "xp_transformer"):
        config = module.config
        hyper_parameters = {
            "input_dim": config.token_dim if kind == "lamost" else 1,
            "embed_dim": config.dim,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "max_len": config.max_len,
            "mask_num_chunks": config.mask_chunks,
            "mask_chunk_width": config.mask_width,
            "dropout": 0.0,
            "norm_first": True,
        }
        hyper_parameters |= (
            {"slice_section_length": config.window, "slice_overlap": config.window - config.stride}
            if kind == "lamost"
            else {"include_stats": True}
        )
    elif kind != "xp_autoencoder":
        # Lightning keeps what the towers were given; these say their heads in attributes of modules.
        for block in module.lamost_lrs_encoder.backbone.blocks:
            block.attention.num_heads = block.attention.heads
        hyper_parameters = {
            "lamost_lrs_encoder": module.lamost_lrs_encoder,
            "gaia_xp_encoder": module.gaia_xp_encoder,
            "lr": 1e-4,
        }
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    torch.save(
        {
            "epoch": 7,
            "global_step": 980,
            "pytorch-lightning_version": "2.1.0",
            "state_dict": state,
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": hyper_parameters,
            "hparams_name": "kwargs",
        },
        path,
    )
    return path
