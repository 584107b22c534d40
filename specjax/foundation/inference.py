"""The compiled programs behind `Foundation`: pure functions of configuration, variables and spectra.

Rows are run in padded batches of a few fixed shapes, so any number of spectra costs at most as many
compilations a program. The compiled programs are shared by all models of one configuration, since parameters
are arguments. Where a process has several devices, each takes its part of every batch.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from specjax import devices
from specjax.config import LoRAConfig, ModelConfig, SpecFormerConfig
from specjax.models.label_head import LabelHead
from specjax.models.projection import LamostProjection
from specjax.models.specclip import SpecCLIP
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import detokenise, standardise, tokenise
from specjax.models.xp_autoencoder import XPAutoencoder, xp_flux, xp_vector
from specjax.typing import AnyArray, BoolArray, Float32Array

Variables = Mapping[str, Any]

FEW_ROWS = (8, 64)  # a call for a few spectra, and for what is left over
DTYPES = ("float32", "bfloat16")  # what the matrix products of the towers may be computed in

NEUTRAL_STATS = {"feature_mean": 0.0, "feature_std": 1.0, "label_mean": 0.0, "label_std": 1.0}


class Summary(NamedTuple):
    """What one pass through the LAMOST backbone leaves of n spectra: all that heads and the domain go by.

    mean (n, d) is the mean token; mixed (n, dim) is what the projection mixes of the tokens before anything
    that LoRA3 adapts (`LamostProjection.mix`), with no columns where there is no projection.
    """

    mean: Any
    mixed: Any


@dataclass(frozen=True)
class Placement:
    """A model's variables where programs read them: on one device, or a copy on each of a mesh."""

    variables: Variables
    mesh: Mesh | None


def place(variables: Variables) -> Placement:
    """Put variables on all devices of this process."""
    if jax.local_device_count() == 1:
        return Placement(variables, None)
    mesh = Mesh(np.array(jax.local_devices()), (devices.AXIS,))
    return Placement(devices.copied(variables, mesh), mesh)


def computing(dtype: str) -> str | None:
    """Return what the modules call one of DTYPES: None is the parameters' own type."""
    return None if dtype == "float32" else dtype


def batch_sizes(config: ModelConfig, dtype: str, mesh: Mesh | None) -> tuple[int, ...]:
    """Return the numbers of rows that programs are compiled for, multiples of the number of devices."""
    count = 1 if mesh is None else mesh.size
    most = devices.rows_that_fit(config, np.dtype(dtype).itemsize) * count
    few = (-(-rows // count) * count for rows in FEW_ROWS)
    return (*(rows for rows in few if rows < most), most)


def run_program(
    config: ModelConfig,
    program: str,
    placed: Placement,
    flux: Float32Array,
    valid: BoolArray,
    dtype: str = "float32",
) -> Float32Array:
    """Run one of `PROGRAMS` on flux (n, pixels) with valid (n, pixels), in batches.

    The towers compute their matrix products in `dtype`; what comes back is float32.
    """
    run = functools.partial(_program, config, program, dtype, placed.variables)
    return _in_batches(run, batch_sizes(config, dtype, placed.mesh), placed.mesh, flux, valid)


def run_summary(
    config: ModelConfig, placed: Placement, flux: Float32Array, valid: BoolArray, dtype: str = "float32"
) -> Summary:
    """Run the LAMOST backbone once on flux (n, pixels), for all that reads it; else as `run_program`."""
    run = functools.partial(_program, config, "summary_lamost", dtype, placed.variables)
    return _in_batches(run, batch_sizes(config, dtype, placed.mesh), placed.mesh, flux, valid)


def run_projection(
    config: ModelConfig, variables: Variables, mixed: Float32Array, dtype: str = "float32"
) -> Float32Array:
    """Finish the LAMOST projection from `Summary.mixed` (n, dim), in batches: z (n, dim)."""
    run = functools.partial(_projection, config, dtype, variables)
    return _in_batches(run, FEW_ROWS, None, mixed)


def run_head(
    config: ModelConfig, variables: Variables, stats: Mapping[str, Any], features: Float32Array
) -> Float32Array:
    """Run a label head on features (n, d), in batches: labels (n, num_labels) in physical units.

    stats has feature_mean, feature_std, label_mean and label_std; what is missing counts as 0 and 1.
    """
    run = functools.partial(_head, config, variables, {**NEUTRAL_STATS, **stats})
    return _in_batches(run, FEW_ROWS, None, features)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _program(
    config: ModelConfig, program: str, dtype: str, variables: Variables, flux: jax.Array, valid: jax.Array
) -> Any:
    networks = Networks(config, variables, computing(dtype))
    return PROGRAMS[program](networks, flux, valid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _projection(config: ModelConfig, dtype: str, variables: Variables, mixed: jax.Array) -> jax.Array:
    module = LamostProjection(config.projection, dtype=computing(dtype))
    return _apply(module, variables, mixed, method="project")


@functools.partial(jax.jit, static_argnums=0)
def _head(
    config: ModelConfig, variables: Variables, stats: Mapping[str, Any], features: jax.Array
) -> jax.Array:
    x = (features - stats["feature_mean"]) / stats["feature_std"]
    labels = _apply(LabelHead(config.head), variables, x)
    return labels * stats["label_std"] + stats["label_mean"]


def next_size(left: int, sizes: tuple[int, ...]) -> int:
    """Return which of the sizes (ascending) the next batch has, where `left` rows are to be done.

    The smallest that holds them all, but where that would be at least half empty the one below it, several
    times. What is left over never takes twice the work that it needs, unless it is less than the smallest.
    """
    fitting = next((size for size in sizes if left <= size), sizes[-1])
    below = [size for size in sizes if size < fitting]
    return below[-1] if below and 2 * left <= fitting else fitting


def _in_batches(run: Callable[..., Any], sizes: tuple[int, ...], mesh: Mesh | None, *arrays: AnyArray) -> Any:
    """Apply a compiled program to rows, a batch of one of the sizes (ascending) at a time; gives NumPy."""
    total, start = len(arrays[0]), 0
    pending: list[Any] = []
    parts: list[Any] = []
    while start < total:
        size = next_size(total - start, sizes)
        batch = [devices.padded_rows(array[start : start + size], size) for array in arrays]
        pending.append(run(*(batch if mesh is None else devices.spread(batch, mesh))))
        start += size
        if len(pending) == 2:  # the device computes one batch while the one before comes back
            parts.append(jax.device_get(pending.pop(0)))
    return jax.tree.map(lambda *each: np.concatenate(each)[:total], *parts, *jax.device_get(pending))


def _apply(module: nn.Module, variables: Variables, *args: Any, method: str | None = None) -> jax.Array:
    return cast(jax.Array, module.apply(variables, *args, method=method))


@dataclass(frozen=True)
class Networks:
    """The modules with their variables; every method maps flux (n, pixels) and valid (n, pixels)."""

    config: ModelConfig
    variables: Variables
    dtype: str | None = None
    lora1: LoRAConfig | None = None  # where the variables hold its factors

    def lamost_tokens(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """All output tokens (n, 146, d) of the LAMOST encoder."""
        return self._lamost_backbone(flux, valid, None)

    def lamost_mean(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The mean token (n, d)."""
        return self.lamost_tokens(flux, valid).mean(axis=1)

    def lamost_summary(self, flux: jax.Array, valid: jax.Array) -> Summary:
        """All that heads and domain go by, from one pass through the encoder."""
        tokens = self.lamost_tokens(flux, valid)
        mean, tower = tokens.mean(axis=1), self.variables["params"]["lamost"]
        if "projection" not in tower:
            return Summary(mean, mean[:, :0])
        module = LamostProjection(self.config.projection, dtype=self.dtype)
        mixed = _apply(module, {"params": tower["projection"]}, tokens, method="mix")
        return Summary(mean, mixed.astype(mean.dtype))

    def lamost_z(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The projected vector (n, dim) of LAMOST flux."""
        return self._specclip(flux, valid, method="encode_lamost")

    def xp_latent(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The latent (n, d) of the Gaia XP autoencoder, or the mean token of the transformer."""
        latent = self._xp_backbone(flux, valid, None)
        return latent if self.config.xp_transformer is None else latent.mean(axis=1)

    def xp_z(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The projected vector (n, dim) of Gaia XP flux."""
        return self._specclip(flux, valid, method="encode_gaia_xp")

    def lamost_decoded_raw(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Standardised flux (n, 1462) from the LAMOST decoder."""
        return self._specclip(self.lamost_z(flux, valid), "lamost", method="reconstruct")

    def lamost_decoded(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The same with the mean and standard deviation of the input put back."""
        _, mean, std = standardise(flux, valid)
        return mean + std * self.lamost_decoded_raw(flux, valid)

    def xp_decoded(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Flux (n, 343) from the Gaia XP decoder."""
        return self._specclip(self.xp_z(flux, valid), "gaia_xp", method="reconstruct")

    def lamost_rebuilt_raw(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The tokens (n, 146, 21) that the bare LAMOST encoder predicts."""
        return self._lamost_backbone(flux, valid, "predict_tokens")

    def lamost_rebuilt(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The same joined to flux (n, 1462), with the mean and standard deviation of the input put back."""
        _, mean, std = standardise(flux, valid)
        return mean + std * detokenise(self.lamost_rebuilt_raw(flux, valid), self.config.specformer)

    def xp_rebuilt_raw(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Mean, std and standardised flux (n, 345) of the autoencoder, or the tokens of the transformer."""
        transformer = self.config.xp_transformer is not None
        return self._xp_backbone(flux, valid, "predict_tokens" if transformer else "reconstruct")

    def xp_rebuilt(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """The same as flux (n, 343)."""
        raw = self.xp_rebuilt_raw(flux, valid)
        if self.config.xp_transformer is None:
            return xp_flux(raw)
        _, mean, std = standardise(flux, valid)
        return mean + std * detokenise(raw, self.config.xp_transformer)

    def lamost_translated(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """LAMOST flux (n, 1462) from Gaia XP flux."""
        return self._specclip(self.xp_z(flux, valid), "lamost", method="translate")

    def xp_translated(self, flux: jax.Array, valid: jax.Array) -> jax.Array:
        """Gaia XP flux (n, 343) from LAMOST flux."""
        return self._specclip(self.lamost_z(flux, valid), "gaia_xp", method="translate")

    def _lamost_backbone(self, flux: jax.Array, valid: jax.Array, method: str | None) -> jax.Array:
        return self._specformer("lamost", self.config.specformer, flux, valid, method)

    def _xp_backbone(self, flux: jax.Array, valid: jax.Array, method: str | None) -> jax.Array:
        if self.config.xp_transformer is not None:
            return self._specformer("gaia_xp", self.config.xp_transformer, flux, valid, method)
        params = {"params": self.variables["params"]["gaia_xp"]["backbone"]}
        module = XPAutoencoder(self.config.xp_autoencoder, self.dtype)
        return _apply(module, params, xp_vector(flux, valid), method=method)

    def _specformer(
        self, survey: str, config: SpecFormerConfig, flux: jax.Array, valid: jax.Array, method: str | None
    ) -> jax.Array:
        params = {"params": self.variables["params"][survey]["backbone"]}
        module = SpecFormer(config, lora=self.lora1 if survey == "lamost" else None, dtype=self.dtype)
        return _apply(module, params, tokenise(flux, config, valid), method=method)

    def _specclip(self, *args: Any, method: str) -> jax.Array:
        return _apply(SpecCLIP(self.config, dtype=self.dtype), self.variables, *args, method=method)


PROGRAMS: Mapping[str, Callable[..., Any]] = {
    "tokens_lamost": Networks.lamost_tokens,
    "pooled_lamost": Networks.lamost_mean,
    "pooled_gaia_xp": Networks.xp_latent,
    "summary_lamost": Networks.lamost_summary,
    "z_lamost": Networks.lamost_z,
    "z_gaia_xp": Networks.xp_z,
    "decoded_lamost": Networks.lamost_decoded,
    "decoded_lamost_raw": Networks.lamost_decoded_raw,
    "decoded_gaia_xp": Networks.xp_decoded,
    "decoded_gaia_xp_raw": Networks.xp_decoded,
    "rebuilt_lamost": Networks.lamost_rebuilt,
    "rebuilt_lamost_raw": Networks.lamost_rebuilt_raw,
    "rebuilt_gaia_xp": Networks.xp_rebuilt,
    "rebuilt_gaia_xp_raw": Networks.xp_rebuilt_raw,
    "translated_lamost": Networks.lamost_translated,
    "translated_gaia_xp": Networks.xp_translated,
}
