"""One adaptation in a process of its own, for `time_to_result`: prints its times as one line of JSON.

    python -m experiments.suite.timed MODEL CONFIGURATION SEEDS

MODEL is a preset, or the folder of a model. The spectra are random, and so are the weights of presets that do
not ship; times do not depend on either. On a CPU, a configuration that trains the backbone of a model of the
published sizes would take hours: there a few steps are timed, and `arithmetic` says what the whole adaptation
is made of.
"""

import json
import sys
import time
from typing import Any

import numpy as np

from specjax.adapt.configuration import Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits, default_sizes
from specjax.adapt.stage import Stage
from specjax.foundation import Foundation

SHIPPED = ("mini", "mini-physics")
"""Models small enough for whole adaptations of the backbone on a CPU."""

STARS = 120
"""Labelled stars, those of the training and validation sets included."""

BATCH, STEPS = 4, 2
"""Of the steps that stand for a whole adaptation."""


def main(preset: str, name: str, seeds: int) -> dict[str, Any]:
    """Adapt a model, or time some of its steps.

    Returns:
        "seconds" from spectra to predictions, the first time and with compiled programs ("again"), whether
        they are "extrapolated", and "peak", bytes of memory of the device, 0 where it does not report it.
    """
    import jax

    from benchmarks.in_specjax import random_model, random_target
    from specjax import load
    from specjax.adapt.splits import draw_splits
    from specjax.config import PRESETS, get_preset

    random = preset in PRESETS and preset not in SHIPPED
    model = random_model(get_preset(preset)) if random else load(preset)
    config = AdaptConfig(seeds=seeds)
    target = random_target(model.config, STARS)
    train, validate = default_sizes(STARS)
    splits = draw_splits(STARS, seeds=seeds, train=train, validate=validate)
    configuration = Configuration.parse(name)
    in_backbone = "lora1" in configuration.groups
    stand_in = in_backbone and preset not in SHIPPED and jax.default_backend() == "cpu"
    run = _steps if stand_in else _whole
    times = run(model, target, splits, config, configuration)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {**times, "extrapolated": stand_in, "peak": peak}


def _whole(
    model: Foundation, target: Any, splits: Splits, config: AdaptConfig, configuration: Configuration
) -> dict[str, float]:
    """Adapt twice, the second time with the programs and the features of the first."""
    from specjax.adapt.adaptation import Adaptation

    seconds = []
    inputs = None
    for _ in range(2):
        start = time.perf_counter()
        adaptation = Adaptation(model, target, splits, config, inputs=inputs)
        adaptation.run(configuration)
        seconds.append(time.perf_counter() - start)
        inputs = adaptation.inputs
    return {"seconds": seconds[0], "again": seconds[1]}


def _steps(
    model: Foundation, target: Any, splits: Splits, config: AdaptConfig, configuration: Configuration
) -> dict[str, float]:
    """Time a few steps of one seed and a pass of spectra, and add up what the adaptation is made of."""
    import jax

    from specjax.adapt.inputs import TargetInputs
    from specjax.adapt.stage import Trainer

    inputs = TargetInputs(model, target)
    forward = _second(lambda: jax.block_until_ready(model.backbone_features(target.labelled[: BATCH * 4])))
    stage = Stage(steps=STEPS, batch=BATCH)
    keys = jax.vmap(jax.random.key)(np.arange(1))
    trainer = Trainer(model, inputs, splits[:1], keys)
    first, again = _both(lambda: trainer.train(configuration, stage))
    counts = arithmetic(config, len(splits), STARS)
    seconds = counts["trained"] * again / (STEPS * BATCH) + counts["passed"] * forward / (BATCH * 4)
    return {"seconds": seconds + first - again, "again": seconds, "per_spectrum": again / (STEPS * BATCH)}


def arithmetic(config: AdaptConfig, seeds: int, stars: int) -> dict[str, int]:
    """Count the spectra of an adaptation of the backbone.

    Returns:
        "trained": spectra that go forward and backward through it: batch x steps x (folds + 1) x seeds, and
        "passed": those that go forward only: for each state and factor on offer the training and validation
        stars, and at last all stars, for each seed.
    """
    runs = config.tower_folds + 1
    train, validate = default_sizes(stars, config.train, config.validate)
    trained = sum((stage.batch or train) * stage.steps * runs for stage in config.joint)
    offered = sum(stage.snapshots for stage in config.joint) * sum(map(bool, config.tower_scales))
    passed = offered * (train + validate) + stars
    return {"trained": seeds * trained, "passed": seeds * passed}


def _both(call: Any) -> tuple[float, float]:
    """Return the seconds of two calls, the first of which compiles."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def _second(call: Any) -> float:
    return _both(call)[1]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
