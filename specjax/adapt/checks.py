"""Checks of a study before anything is trained: of its settings alone, and of the model with them."""

import re
from collections.abc import Sequence

import numpy as np

from specjax import lora
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import label_scale
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.start import Ranks
from specjax.adapt.target import Target
from specjax.errors import ConfigError, DataError, ModelError
from specjax.foundation import Foundation
from specjax.typing import Tree

_LEAST_SPREAD = 1e-5  # of labels, in units of their standard deviation among the model's training stars

ONLY_FACTORS = "only low-rank factors (lora1 to lora4) can be averaged"


def check_settings(configurations: Sequence[Configuration], config: AdaptConfig) -> None:
    """Check what needs neither a model nor spectra.

    Raises:
        ConfigError: no configuration, one that these settings cannot train, or none to fuse.
    """
    if not configurations:
        raise ConfigError("name at least one configuration")
    for configuration in configurations:
        config.trainings(configuration)
    if config.fuse and not any(configuration.can_be_fused for configuration in configurations):
        names = ", ".join(configuration.name for configuration in configurations)
        raise ConfigError(f"none of {names} can be fused: {ONLY_FACTORS}")


def check_model(model: Foundation, configurations: Sequence[Configuration], config: AdaptConfig) -> None:
    """Check that the model has what the configurations adapt and predict with.

    Raises:
        ModelError: the model lacks a part that a configuration needs, or the ranks leave nothing of a group.
        ConfigError: a rule of the ranks that matches no layer.
    """
    check_ranks(config.ranks, model.params)
    for configuration in configurations:
        for head in configuration.heads:
            if head not in model.params or (head == "mlp2" and "projection" not in model.params["lamost"]):
                raise ModelError(f"this model has no head {head!r}, or no features for it")
        if config.needs_xp(configuration) and "projection" not in model.params.get("gaia_xp", {}):
            raise ModelError("this model has no Gaia XP tower, which LoRA3 aligns with")
        groups = {group: model.config.loras[group] for group in configuration.lora_groups}
        lora.layer_ranks(model.params, groups, config.ranks)


def check_label(model: Foundation, label: str) -> None:
    """Check that the model predicts a label.

    Raises:
        ConfigError: it does not.
    """
    if label not in model.config.labels:
        raise ConfigError(f"the model predicts {', '.join(model.config.labels)}, not {label!r}")


def check_truth(model: Foundation, target: Target) -> None:
    """Check that the labels of a target differ.

    Raises:
        DataError: they are the same, or differ by less than the single precision in which they are learned.
    """
    truth = np.asarray(target.truth, np.float64)
    spread = float(np.ptp(truth))
    scale = min(label_scale(model, head, target.label)[1] for head in lora.HEADS)
    rounding = 4 * float(np.finfo(np.float32).eps) * float(np.abs(truth).max())
    if spread <= max(_LEAST_SPREAD * scale, rounding):
        raise DataError(
            f"{target.name}: the {target.label} of all {len(truth)} labelled stars is {truth[0]:g}, with"
            f" differences of at most {spread:.2g}: there is nothing to learn from it"
        )


def check_ranks(ranks: Ranks, params: Tree) -> None:
    """Check that every rule is found in the path of a layer, which any LoRA group may adapt.

    Raises:
        ConfigError: a rule that matches no layer.
    """
    layers = lora.adaptable_layers(params)
    for rule, _ in ranks:
        if not any(re.search(rule, layer) for layer in layers):
            example = f", such as {layers[0]}" if layers else ""
            raise ConfigError(f"{rule!r} in ranks (--ranks) matches no layer with low-rank factors{example}")
