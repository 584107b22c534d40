"""Time what a user waits for, print one table and write one JSON.

    python -m benchmarks --out runs/bench.json

Medians of repeated calls after a warm-up that compiles. Spectra are random: no time depends on the weights.
"""

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from specjax.config import ModelConfig, get_preset
from specjax.foundation import Foundation
from specjax.models.label_head import LabelHead
from specjax.models.specclip import SpecCLIP
from specjax.targets import Grid, Target, draw_splits
from specjax.train.adapt import AdaptConfig, Adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    preset: str = "mini"
    """Sizes of the model."""
    seeds: tuple[int, ...] = (1, 16)
    """Numbers of seeds of the adaptation runs."""
    spectra: int = 256
    """Spectra to embed."""
    repeats: int = 5
    """Timed calls, of which the median is taken."""
    out: Path | None = None
    """JSON to write."""


def main(options: Options) -> None:
    """Measure, print, write."""
    model = random_model(get_preset(options.preset))
    flux = np.random.default_rng(0).normal(1.0, 0.1, (options.spectra, model.config.specformer.num_pixels))
    rows = [_row("embed spectra (projected)", lambda: model.embed(flux), options, per=options.spectra)]
    target = random_target(model.config)
    for configuration in ("lora4", "lora1+lora2"):
        for seeds in options.seeds:
            config = AdaptConfig(seeds=seeds)
            splits = draw_splits(
                len(target.labelled), seeds=seeds, train=config.train, validate=config.validate
            )
            adapter = Adapter(model, target, splits, config)

            def run(adapter: Adapter = adapter, configuration: str = configuration) -> Any:
                adapter.forget()
                return adapter.run(configuration)

            rows.append(_row(f"{configuration}, {seeds} seeds", run, options, per=seeds))
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), {platform.machine()}, jax {jax.__version__}, "
        f"{options.preset}"
    )
    print(f"{'':32s}{'median s':>10s}{'min s':>10s}{'first s':>10s}{'per s':>12s}")
    for row in rows:
        print(
            f"{row['what']:32s}{row['median']:10.3f}{row['min']:10.3f}{row['first']:10.3f}{row['rate']:12.1f}"
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
        options.out.write_text(json.dumps({**about, "preset": options.preset, "rows": rows}, indent=2) + "\n")


def random_model(config: ModelConfig) -> Foundation:
    """Make a model with random weights and both heads."""
    key = jax.random.key(0)
    pixels, samples = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
    variables = SpecCLIP(config).init(key, np.ones((2, pixels)), np.ones((2, samples)))
    variables = {name: dict(tree) for name, tree in variables.items()}
    stats: dict[str, Any] = {}
    for head, dim in (("mlp1", config.specformer.dim), ("mlp2", config.projection.dim)):
        made = LabelHead(config.head).init(key, np.ones((2, dim)))
        for name, tree in made.items():
            variables[name][head] = tree
        count = config.head.num_labels
        stats[head] = {
            "feature_mean": np.zeros(dim, np.float32),
            "feature_std": np.ones(dim, np.float32),
            "label_mean": np.zeros(count, np.float32),
            "label_std": np.ones(count, np.float32),
        }
    return Foundation(config=config, variables=variables, stats=stats)


def random_target(config: ModelConfig, labelled: int = 126, unlabelled: int = 128) -> Target:
    """Make a target of the demo's size."""
    random = np.random.default_rng(1)
    count = labelled + unlabelled
    flux = random.normal(1.0, 0.1, (count, config.specformer.num_pixels))
    grid = Grid(
        flux=flux,
        ivar=None,
        mask=np.zeros(flux.shape, bool),
        id=np.array([f"star{k}" for k in range(count)]),
        xp_flux=random.normal(1.0, 0.1, (count, config.xp_autoencoder.num_pixels)),
        xp_valid=np.ones((count, config.xp_autoencoder.num_pixels), bool),
    )
    truth = random.normal(-0.5, 0.5, labelled)
    rows = np.arange(count)
    return Target(
        name="random",
        labelled=grid[rows[:labelled]],
        truth=truth,
        label="fe_h",
        unlabelled=grid[rows[labelled:]],
        fe_h=truth,
    )


def _row(what: str, run: Callable[[], Any], options: Options, *, per: int) -> dict[str, Any]:
    times = []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    median = statistics.median(times[1:])
    return {"what": what, "first": times[0], "median": median, "min": min(times[1:]), "rate": per / median}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
