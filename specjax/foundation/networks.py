"""The networks of a model with their variables, as pure functions of spectra on the model grids.

Every method of `Networks` maps flux (n, pixels) and valid (n, pixels, True where the flux may be used). They
are what `inference.run` compiles, and what the adaptation vmaps over seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from specjax import devices
from specjax.config import LoRAConfig, ModelConfig, SpecFormerConfig
from specjax.models.apply import apply
from specjax.models.products import token_mean
from specjax.models.projection import LamostProjection
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import detokenise, standardise, tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_flux, xp_vector

Variables = Mapping[str, Any]

DTYPES = ("float32", "bfloat16")
"""Types in which the towers may compute their matrix products."""

DtypeChoice = Literal["auto", "float32", "bfloat16"]
"""One of them, or "auto": bfloat16 on a device that is fast in it, else float32."""


class BackboneFeatures(NamedTuple):
    """What label heads and the out-of-domain test need of the LAMOST backbone's output, for n spectra.

    Attributes:
        mean: (n, d) mean token.
        mixed: (n, dim) tokens pooled by `LamostProjection.mix`, before any layer that LoRA3 adapts; (n, 0) if
            the model has no projection.
    """

    mean: Any  # NumPy or JAX, as the program that made it
    mixed: Any


def choose_dtype(dtype: DtypeChoice = "auto") -> str:
    """Return one of `DTYPES`, for the devices of this process."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if devices.has_bfloat16_units() else "float32"


def module_dtype(dtype: str) -> str | None:
    """Return the `dtype` argument of the modules for one of `DTYPES`; None means that of the parameters."""
    return None if dtype == "float32" else dtype


@dataclass(frozen=True)
class Networks:
    """The modules of a model with their variables.

    Attributes:
        config: sizes.
        variables: {"params": ..., "batch_stats": ...}; LoRA1 acts where the parameters hold its factors.
        dtype: see `module_dtype`.
    """

    config: ModelConfig
    variables: Variables
    dtype: str | None = None

    def lamost_tokens(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return all output tokens (n, tokens, d) of the LAMOST encoder."""
        return self._lamost_backbone(flux, valid)

    def lamost_mean(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the mean token (n, d)."""
        return token_mean(self.lamost_tokens(flux, valid))

    def lamost_features(self, flux: jax.Array, valid: jax.Array) -> BackboneFeatures:
        """Return the mean token and the pooled tokens from one pass through the LAMOST encoder."""
        tokens = self.lamost_tokens(flux, valid)
        mean, tower = token_mean(tokens), self.variables["params"]["lamost"]
        if "projection" not in tower:
            return BackboneFeatures(mean, mean[:, :0])
        module = LamostProjection(self.config.projection, dtype=self.dtype)
        mixed = apply(module, {"params": tower["projection"]}, tokens, method="mix")
        return BackboneFeatures(mean, mixed.astype(mean.dtype))

    def lamost_z(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the projected vector (n, dim) of LAMOST flux."""
        return self._specclip(flux, valid, method="encode_lamost")

    def xp_latent(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the latent (n, d) of the Gaia XP autoencoder, or the mean token of the transformer."""
        latent = self._xp_backbone(flux, valid)
        return latent if self.config.xp_transformer is None else token_mean(latent)

    def xp_z(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the projected vector (n, dim) of Gaia XP flux."""
        return self._specclip(flux, valid, method="encode_gaia_xp")

    def lamost_decoded_raw(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return standardised flux (n, 1462) from the LAMOST decoder."""
        return self._specclip(self.lamost_z(flux, valid), "lamost", method="reconstruct")

    def lamost_decoded(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the same with the mean and standard deviation of the input restored."""
        _, mean, std = standardise(flux, valid)
        return mean + std * self.lamost_decoded_raw(flux, valid)

    def xp_decoded(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return flux (n, 343) from the Gaia XP decoder."""
        return self._specclip(self.xp_z(flux, valid), "gaia_xp", method="reconstruct")

    def lamost_rebuilt_raw(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the tokens (n, tokens, token_dim) that the bare LAMOST encoder predicts."""
        return self._lamost_backbone(flux, valid, "predict_tokens")

    def lamost_rebuilt(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the same joined to flux (n, 1462), in units of the input."""
        _, mean, std = standardise(flux, valid)
        return mean + std * detokenise(self.lamost_rebuilt_raw(flux, valid), self.config.specformer)

    def xp_rebuilt_raw(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return mean, std and standardised flux (n, 345) of the autoencoder, or the transformer's tokens."""
        transformer = self.config.xp_transformer is not None
        return self._xp_backbone(flux, valid, "predict_tokens" if transformer else "reconstruct")

    def xp_rebuilt(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return the same as flux (n, 343), in units of the input."""
        raw = self.xp_rebuilt_raw(flux, valid)
        if self.config.xp_transformer is None:
            return xp_flux(raw)
        _, mean, std = standardise(flux, valid)
        return mean + std * detokenise(raw, self.config.xp_transformer)

    def lamost_translated(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return LAMOST flux (n, 1462) predicted from Gaia XP flux."""
        return self._specclip(self.xp_z(flux, valid), "lamost", method="translate")

    def xp_translated(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Return Gaia XP flux (n, 343) predicted from LAMOST flux."""
        return self._specclip(self.lamost_z(flux, valid), "gaia_xp", method="translate")

    def _lamost_backbone(self, flux: jax.Array, valid: jax.Array, method: str | None = None) -> jax.Array:
        return self._specformer("lamost", self.config.specformer, self.config.lora1, flux, valid, method)

    def _xp_backbone(self, flux: jax.Array, valid: jax.Array, method: str | None = None) -> jax.Array:
        if self.config.xp_transformer is not None:
            return self._specformer("gaia_xp", self.config.xp_transformer, None, flux, valid, method)
        module = XPAutoencoder(self.config.xp_autoencoder, self.dtype)
        return apply(module, self._backbone("gaia_xp"), xp_vector(flux, valid), method=method)

    def _specformer(
        self,
        survey: str,
        config: SpecFormerConfig,
        lora: LoRAConfig | None,
        flux: jax.Array,
        valid: jax.Array,
        method: str | None,
    ) -> jax.Array:
        module = SpecFormer(config, lora=lora, dtype=self.dtype)
        return apply(module, self._backbone(survey), tokenise(flux, config, valid), method=method)

    def _backbone(self, survey: str) -> Variables:
        return {"params": self.variables["params"][survey]["backbone"]}

    def _specclip(self, *args: Any, method: str) -> jax.Array:
        return apply(SpecCLIP(self.config, dtype=self.dtype), self.variables, *args, method=method)
