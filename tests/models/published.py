"""The published SpecCLIP networks in PyTorch, written from their description, with the published names.

It has only what the parity tests need: forward passes in evaluation mode.
"""

import re

import torch
from torch import nn
from torch.nn import functional

from specjax.config import DecoderConfig, LabelHeadConfig, ModelConfig, SpecFormerConfig, XPAutoencoderConfig


def standardised(flux):
    """(flux - mean)/std with torch's default, the unbiased standard deviation."""
    mean, std = flux.mean(1, keepdim=True), flux.std(1, keepdim=True)
    return (flux - mean) / std, mean, std


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.kv_proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        head_dim = d // self.heads
        q, (k, v) = self.q_proj(x), self.kv_proj(x).chunk(2, dim=-1)
        q, k, v = (a.reshape(n, t, self.heads, head_dim).transpose(1, 2) for a in (q, k, v))
        # Scaled here and again by the fused kernel.
        out = functional.scaled_dot_product_attention(q * head_dim**-0.5, k, v)
        return self.out_proj(out.transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class SpecFormer(nn.Module):
    def __init__(self, config: SpecFormerConfig):
        super().__init__()
        self.config = config
        self.data_embed = nn.Linear(config.token_dim, config.dim)
        self.position_embed = nn.Embedding(config.max_len, config.dim)
        blocks = [Block(config.dim, config.num_heads, config.mlp_dim) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.final_layernorm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.token_dim)

    def preprocess(self, flux):
        x, mean, std = standardised(flux)
        window, overlap = self.config.window, self.config.window - self.config.stride
        starts = range(0, x.shape[1] - overlap, self.config.stride)
        rows = [x[:, start : start + window] for start in starts]
        if self.config.statistics == ("log10_std",):
            values = [std.log10()]
            rows = rows[:-1]  # the published code always drops the last one
        else:
            values = [mean, std]
        tokens = functional.pad(torch.stack(rows, dim=1), (len(values), 0, 1, 0))
        tokens[:, 0, : len(values)] = torch.cat(values, dim=1)
        return tokens

    def forward(self, flux):
        tokens = self.preprocess(flux)
        x = self.data_embed(tokens) + self.position_embed(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.final_layernorm(x)
        return {"tokens": tokens, "embedding": x, "reconstructions": self.head(x)}


class XPBlock(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim), nn.Dropout(0.1)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.mlp(self.norm(x))


class XPAutoencoder(nn.Module):
    def __init__(self, config: XPAutoencoderConfig):
        super().__init__()
        pixels, width, hidden = config.num_pixels + 2, config.hidden_dim, config.expansion * config.hidden_dim
        self.input_proj = nn.Linear(pixels, width)
        self.encoder_blocks = nn.ModuleList([XPBlock(width, hidden) for _ in range(config.num_blocks)])
        self.bottleneck_down = nn.Linear(width, config.latent_dim)
        self.bottleneck_norm = nn.LayerNorm(config.latent_dim)
        self.bottleneck_up = nn.Linear(config.latent_dim, width)
        self.decoder_blocks = nn.ModuleList([XPBlock(width, hidden) for _ in range(config.num_blocks)])
        self.output_proj = nn.Linear(width, pixels)

    def forward(self, flux):
        x, mean, std = standardised(flux)
        hidden = self.input_proj(torch.cat([mean, std, x], dim=1))
        for block in self.encoder_blocks:
            hidden = block(hidden)
        latent = self.bottleneck_norm(self.bottleneck_down(hidden))
        hidden = self.bottleneck_up(latent)
        for block in self.decoder_blocks:
            hidden = block(hidden)
        return {"latent": latent, "reconstructions": self.output_proj(hidden)}


class CrossAttention(nn.Module):
    def __init__(self, dim, heads, model_dim):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.multihead_attn = nn.MultiheadAttention(
            dim, heads, dropout=0.1, batch_first=True, kdim=model_dim, vdim=model_dim
        )
        self.layernorm = nn.LayerNorm(dim)

    def forward(self, tokens):
        query = self.query.repeat(tokens.shape[0], 1, 1)
        return self.layernorm(self.multihead_attn(query, tokens, tokens)[0])[:, 0]


class MLP(nn.Module):
    def __init__(self, dim, expansion):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)

    def forward(self, x):
        return self.decoder(functional.gelu(self.encoder(x)))


def feature_mlp(dim, hidden):
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, dim),
        nn.LayerNorm(dim),
        nn.Dropout(0.1),
    )


class LamostHead(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.backbone = SpecFormer(config.specformer)
        self.parts = [""] if not config.projection.private_dim else ["shared_", "private_"]
        for part, dim, heads in zip(
            self.parts, config.projection.dims, config.projection.num_heads, strict=False
        ):
            attention = CrossAttention(dim, heads, config.specformer.dim)
            setattr(self, f"{part}attention" if part else "cross_attention", attention)
            setattr(self, f"{part}mlp", MLP(dim, config.projection.mlp_expansion))

    def forward(self, flux):
        tokens = self.backbone(flux)["embedding"]
        out = []
        for part in self.parts:
            pooled = getattr(self, f"{part}attention" if part else "cross_attention")(tokens)
            out.append(pooled + getattr(self, f"{part}mlp")(pooled))
        return torch.cat(out, dim=-1)


class GaiaXPHead(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.backbone = XPAutoencoder(config.xp_autoencoder)
        self.parts = [""] if not config.projection.private_dim else ["shared_", "private_"]
        for part, dim in zip(self.parts, config.projection.dims, strict=True):
            setattr(self, f"{part}projection", nn.Linear(config.xp_autoencoder.latent_dim, dim))
            setattr(self, f"{part}feature_mlp", feature_mlp(dim, config.projection.feature_hidden))
            setattr(self, f"{part}mlp", MLP(dim, config.projection.mlp_expansion))

    def forward(self, flux):
        latent = self.backbone(flux)["latent"]
        out = []
        for part in self.parts:
            x = getattr(self, f"{part}feature_mlp")(getattr(self, f"{part}projection")(latent))
            out.append(x + getattr(self, f"{part}mlp")(x))
        return torch.cat(out, dim=-1)


class Decoder(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        layers = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.GELU(), nn.BatchNorm1d(width), nn.Dropout(0.1)]
            inputs = width
        self.decoder = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, z):
        return self.decoder(z)


class SplitDecoder(nn.Module):
    def __init__(self, shared, private, outputs):
        super().__init__()
        self.shared = shared
        self.shared_proj, self.private_proj = nn.Linear(shared, outputs), nn.Linear(private, outputs)
        self.final_layer = nn.Sequential(
            nn.Linear(2 * outputs, 2 * outputs), nn.GELU(), nn.Linear(2 * outputs, outputs)
        )

    def forward(self, z):
        shared, private = z[:, : self.shared], z[:, self.shared :]
        return self.final_layer(torch.cat([self.shared_proj(shared), self.private_proj(private)], dim=1))


class SpecCLIP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.shared = shared = config.projection.shared_dim
        self.lamost_lrs_encoder, self.gaia_xp_encoder = LamostHead(config), GaiaXPHead(config)
        if config.decoder is None:  # "base"
            return
        decoder: DecoderConfig = config.decoder
        sizes = {
            "lamost_lrs": (decoder.lamost_hidden, config.specformer.num_pixels),
            "gaia_xp": (decoder.gaia_xp_hidden, config.xp_autoencoder.num_pixels),
        }
        for name, (hidden, outputs) in sizes.items():
            private = config.projection.private_dim
            own = SplitDecoder(shared, private, outputs) if private else Decoder(shared, hidden, outputs)
            setattr(self, f"{name}_decoder", own)
            setattr(self, f"{name}_cross_decoder", Decoder(shared, hidden, outputs))

    def forward(self, lamost, gaia_xp):
        z_lamost, z_xp = self.lamost_lrs_encoder(lamost), self.gaia_xp_encoder(gaia_xp)
        out = {"z_lamost": z_lamost, "z_xp": z_xp}
        if not hasattr(self, "lamost_lrs_decoder"):
            return out
        return out | {
            "lamost": self.lamost_lrs_decoder(z_lamost),
            "gaia_xp": self.gaia_xp_decoder(z_xp),
            "lamost_cross": self.lamost_lrs_cross_decoder(z_xp[:, : self.shared]),
            "gaia_xp_cross": self.gaia_xp_cross_decoder(z_lamost[:, : self.shared]),
        }


class ParamRegressor(nn.Module):
    def __init__(self, inputs, config: LabelHeadConfig):
        super().__init__()
        layers = []
        for width in config.hidden_dims:
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)]
            inputs = width
        self.network = nn.Sequential(*layers, nn.Linear(inputs, config.num_labels))

    def forward(self, x):
        return self.network(x)


def randomised(module, seed=0):
    """Put a module in evaluation mode, with every scale, bias and running statistic off its default.

    Queries are enlarged: attention is then far from uniform, and an error in its scale shows.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            centre = 1.0 if re.search(r"(ln\d|norm|[._]\d+)\.weight$", name) else 0.0
            tensor.normal_(centre, 0.2, generator=generator)
        elif name.endswith("attention.q_proj.weight"):
            tensor *= 20
    return module.eval()
