"""SpecCLIP: LAMOST and Gaia XP towers into one contrastive space, and decoders from it to both surveys."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from specjax.config import LoRAConfig, ModelConfig
from specjax.errors import ModelError
from specjax.models.decoders import Decoder, SplitDecoder
from specjax.models.projection import LamostProjection, XPProjection
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_vector


class LamostTower(nn.Module):
    """The LAMOST encoder with LoRA1 and its projection with LoRA3."""

    config: ModelConfig
    lora1: LoRAConfig | None = None
    lora3: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        self.backbone = SpecFormer(self.config.specformer, lora=self.lora1, dtype=self.dtype)
        self.projection = LamostProjection(self.config.projection, lora=self.lora3, dtype=self.dtype)

    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """Map tokens (n, t, token_dim) to z (n, dim)."""
        return self.projection(self.backbone(tokens), deterministic)


class XPTower(nn.Module):
    """The Gaia XP encoder and its projection."""

    config: ModelConfig
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        self.backbone = XPAutoencoder(self.config.xp_autoencoder, self.dtype)
        self.projection = XPProjection(self.config.projection, self.dtype)

    def __call__(self, vector: jax.Array, deterministic: bool = True) -> jax.Array:
        """Map vectors (n, p + 2) to z (n, dim)."""
        return self.projection(self.backbone(vector), deterministic)


class SpecCLIP(nn.Module):
    """Both towers and, unless `config.decoder` is None, the four decoders.

    A decoder is named after the survey that it predicts: lamost_decoder reads z of LAMOST,
    lamost_cross_decoder z of Gaia XP. As trained, lamost_decoder predicts standardised flux and the other
    three predict the input flux. In the "split" form the contrastive loss and the cross decoders use the
    shared part z[:, :shared_dim] only. `dtype` is that of the towers' matrix products; the decoders compute
    in float32.
    """

    config: ModelConfig
    lora1: LoRAConfig | None = None
    lora3: LoRAConfig | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:  # noqa: D102
        config = self.config
        self.lamost = LamostTower(config, lora1=self.lora1, lora3=self.lora3, dtype=self.dtype)
        self.gaia_xp = XPTower(config, self.dtype)
        if config.decoder is None:
            return
        lamost, gaia_xp = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
        dropout = config.decoder.dropout
        self.lamost_cross_decoder = Decoder(config.decoder.lamost_hidden, lamost, dropout)
        self.gaia_xp_cross_decoder = Decoder(config.decoder.gaia_xp_hidden, gaia_xp, dropout)
        if config.projection.private_dim:
            self.lamost_decoder: nn.Module = SplitDecoder(config.projection.shared_dim, lamost)
            self.gaia_xp_decoder: nn.Module = SplitDecoder(config.projection.shared_dim, gaia_xp)
        else:
            self.lamost_decoder = Decoder(config.decoder.lamost_hidden, lamost, dropout)
            self.gaia_xp_decoder = Decoder(config.decoder.gaia_xp_hidden, gaia_xp, dropout)

    def __call__(
        self,
        lamost_flux: jax.Array,
        xp_flux: jax.Array,
        lamost_valid: jax.Array | None = None,
        xp_valid: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Embed and decode pairs of spectra of the same stars.

        Args:
            lamost_flux: (n, 1462) on the LAMOST grid.
            xp_flux: (n, 343) on the Gaia XP grid.
            lamost_valid: (n, 1462) bool, True where the flux may be used; None uses all pixels.
            xp_valid: (n, 343) bool, the same for Gaia XP.
            train: apply dropout, use and update batch statistics.

        Returns:
            z_lamost (n, dim), z_xp (n, dim) and the dict of `decode`.
        """
        tokens = self.lamost.backbone(tokenise(lamost_flux, self.config.specformer, lamost_valid))
        latent = self.gaia_xp.backbone(xp_vector(xp_flux, xp_valid))
        return self.project(tokens, latent, train)

    def project(
        self, tokens: jax.Array, latent: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Project and decode the outputs of the backbones, tokens (n, t, d) and latent (n, latent_dim)."""
        z_lamost = self.lamost.projection(tokens, not train)
        z_xp = self.gaia_xp.projection(latent, not train)
        extras = {} if self.config.decoder is None else self.decode(z_lamost, z_xp, train)
        return z_lamost, z_xp, extras

    def encode_lamost(self, flux: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Map LAMOST flux (n, 1462) to z (n, dim)."""
        return self.lamost(tokenise(flux, self.config.specformer, valid))

    def encode_gaia_xp(self, flux: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Map Gaia XP flux (n, 343) to z (n, dim)."""
        return self.gaia_xp(xp_vector(flux, valid))

    def decode(self, z_lamost: jax.Array, z_xp: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Apply all decoders: lamost, gaia_xp, lamost_cross (from z_xp) and gaia_xp_cross (from z_lamost)."""
        return {
            "lamost": self.reconstruct(z_lamost, "lamost", train),
            "gaia_xp": self.reconstruct(z_xp, "gaia_xp", train),
            "lamost_cross": self.translate(z_xp, "lamost", train),
            "gaia_xp_cross": self.translate(z_lamost, "gaia_xp", train),
        }

    def reconstruct(self, z: jax.Array, survey: str, train: bool = False) -> jax.Array:
        """Decode z (n, dim) of a survey to the flux of that survey, standardised for LAMOST."""
        return self._decoder(f"{survey}_decoder")(z, train)

    def translate(self, z: jax.Array, target: str, train: bool = False) -> jax.Array:
        """Decode z (n, dim) of one survey to the flux of the other, `target`."""
        return self._decoder(f"{target}_cross_decoder")(z[..., : self.config.projection.shared_dim], train)

    def _decoder(self, name: str) -> nn.Module:
        if self.config.decoder is None:
            raise ModelError("this model has no decoders (contrastive only)")
        return getattr(self, name)
