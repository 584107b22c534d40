"""Fusing the adapters of all seeds into one, and the stars on which it can be scored."""

import dataclasses

import numpy as np

from specjax import lora
from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.forward import predict_label
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.progress import Say

FUSED, MEAN = "-fused", "-mean"
"""Endings of the rows of adapters that were fused and of the mean of the predictions of all seeds."""

MIN_UNSEEN = 10
"""Fewest stars on which fused adapters are scored."""


def fuse_seeds(model: Foundation, target: Target, result: AdaptationResult) -> AdaptationResult:
    """Fuse the adapters of all seeds into one (`lora.fuse`), and predict with it.

    Raises:
        ModelError: the configuration trains other leaves than low-rank factors.
    """
    adapters = lora.fuse(result.adapters)
    heads = result.configuration.heads
    predictions = predict_label(model, heads, adapters, target.labelled, target.label)
    return _of_all_seeds(
        dataclasses.replace(result, predictions=predictions, adapters=adapters, of_seeds=result.predictions),
        FUSED,
    )


def mean_of_seeds(result: AdaptationResult) -> AdaptationResult:
    """Return the mean of the predictions of all seeds, without an adapter."""
    predictions = result.predictions.mean(axis=0, keepdims=True)
    return _of_all_seeds(
        dataclasses.replace(result, predictions=predictions, adapters={}, of_seeds=result.predictions), MEAN
    )


def unseen_split(target: Target, splits: Splits, say: Say) -> Splits | None:
    """Return a split that tests the stars which no seed has been trained or selected on.

    None, with a line of `say`, if they are too few.
    """
    seen = np.concatenate([splits.train, splits.validate], axis=1)
    unseen = np.setdiff1d(np.arange(len(target.labelled)), seen)
    if len(unseen) < MIN_UNSEEN:
        advice = "" if splits.all_equal else "; use one split for all seeds"
        say(
            f"{target.name}: {len(unseen)} stars are in no seed's training or validation set, too few to"
            f" score the fused adapters{advice}"
        )
        return None
    return Splits(train=splits.train[:1], validate=splits.validate[:1], test=unseen[None])


def _of_all_seeds(result: AdaptationResult, ending: str) -> AdaptationResult:
    name = f"{result.configuration.name}{ending}"
    return dataclasses.replace(
        result, configuration=dataclasses.replace(result.configuration, name=name), chosen={}
    )
