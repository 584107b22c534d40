"""What a model or a set of spectra is, in numbers: the content of `specjax info`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from specjax import lora
from specjax.config import ModelConfig
from specjax.foundation import Foundation
from specjax.models import LabelHead, SpecCLIP


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of a model's parts and of the low-rank factors beside them, from shapes alone.

    lamost_encoder, xp_autoencoder, lora1 to lora4 and label_head (MLP2; MLP1 is the same where both read
    vectors of one width), and specclip: both towers with their projections and the decoders they have.
    """
    key = jax.random.key(0)
    fluxes = [jnp.zeros((1, n)) for n in (config.specformer.num_pixels, config.xp_autoencoder.num_pixels)]
    params = dict(jax.eval_shape(SpecCLIP(config).init, key, *fluxes)["params"])
    specclip = lora.count_parameters(params)
    for head, width in (("mlp1", config.specformer.dim), ("mlp2", config.projection.dim)):
        params[head] = jax.eval_shape(LabelHead(config.head).init, key, jnp.zeros((1, width)))["params"]
    return {
        "lamost_encoder": lora.count_parameters(params["lamost"]["backbone"]),
        "xp_autoencoder": lora.count_parameters(params["gaia_xp"]["backbone"]),
        **{group: _count_factors(params, group, config) for group in config.loras},
        "label_head": lora.count_parameters(params["mlp2"]),
        "specclip": specclip,
    }


def describe_model(model: Foundation) -> dict[str, Any]:
    """Say what a loaded model holds: its name, labels, parts with their parameters, and digest."""
    parts = {"/".join(path): lora.count_parameters(tree) for path, tree in _parts(model.params)}
    return {
        "name": model.config.name,
        "labels": list(model.config.labels),
        "parameters": parts,
        "total": sum(parts.values()),
        "digest": model.digest,
    }


def format_description(description: Mapping[str, Any], indent: str = "") -> str:
    """Lay a description out as aligned lines, with thousands separated."""
    width = max((len(key) for key in description), default=0)
    lines = []
    for key, value in description.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}", format_description(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_text(value)}")
    return "\n".join(lines)


def _count_factors(params: Mapping[str, Any], group: str, config: ModelConfig) -> int:
    """Count one LoRA group's factors."""
    made = jax.eval_shape(
        lambda tree: lora.init_adapters(jax.random.key(0), tree, {group: config.loras[group]}), params
    )
    return lora.count_parameters(made)


def _parts(params: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    """Towers by encoder and projection, everything else as it is."""
    parts: list[tuple[tuple[str, ...], Any]] = []
    for name, tree in params.items():
        inner = name in ("lamost", "gaia_xp")
        parts += [((name, part), tree[part]) for part in tree] if inner else [((name,), tree)]
    return parts


def _text(value: Any) -> str:
    """One value for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)
