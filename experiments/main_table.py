"""The paper's table on real stars: six configurations, three targets, intervals over stars.

    python -m experiments.main_table --out runs/main_table

The model has learned from simulated spectra. The targets are MILES, as observed and as a slitless survey of
low resolution would deliver it, with the numbers of stars of the paper (89 for training, 9 for validation,
397 for testing, one more), and STELIB (60, 10, 56). Expected with the shipped model and 16 seeds: see
README.md.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from experiments import miles, stelib
from experiments.source import Source, observed_source, simulated_source
from experiments.stelib import label_scatter
from specjax import load
from specjax.adapt.configuration import PAPER, Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits, draw_splits
from specjax.adapt.study import run_study
from specjax.adapt.target import Target
from specjax.cache import cache_folder, use_compilation_cache
from specjax.errors import ConfigError
from specjax.lora import HEADS
from specjax.prepare.pool import core_count
from specjax.progress import say
from specjax.report.results import Row, print_table
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.typing import FloatArray

EXTRA = tuple(f"{kind}-{head}" for kind in ("residual", "scratch", "full") for head in HEADS)
"""Rows for what the paper does not train."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command line."""

    out: Path = Path("runs/main_table")
    """Folder to write: table.json, predictions, plots and adapters."""
    model: str = "mini-physics"
    """Model folder, "mini-physics", or "mini", which was trained on MILES and is for the STELIB targets."""
    targets: tuple[str, ...] = ("miles", "miles-grism", "stelib")
    """Targets: miles, miles-grism, stelib, stelib-grism."""
    miles_train: int = miles.TRAIN
    """Training stars of each seed of miles and miles-grism."""
    configurations: tuple[str, ...] = PAPER
    """Rows of the table."""
    everything: bool = False
    """Add the rows that take longer: residual heads, heads from scratch, full fine-tuning, The Cannon and The
    Payne."""
    baselines: bool = True
    """Add rows for methods without a foundation model (needs the extra "baselines")."""
    adapt: AdaptConfig = AdaptConfig(train=60, validate=10)
    """Seeds, splits and training stages."""


def get_config() -> Config:
    """Return the configuration of the demo."""
    return Config()


def main(config: Config) -> list[Row]:
    """Run all configurations, write the folder and print the table."""
    use_compilation_cache()
    model = load(config.model)
    if model.config.name == "mini" and set(config.targets) & set(miles.NAMES):
        raise ConfigError(
            "mini was trained on MILES stars and their labels: use mini-physics for these targets"
        )
    libraries = fetch_stellar_libraries()
    targets = make_targets(libraries, config.targets)
    scatter = {target.name: label_scatter(libraries, target) for target in targets if target.name == "stelib"}
    baselines = None
    if config.baselines:
        simulated = model.config.name != "mini"
        source = (simulated_source if simulated else observed_source)(libraries)
        baselines = Baselines(libraries, source, config.adapt, config.everything)
    names = (*config.configurations, *(EXTRA if config.everything else ()))
    rows = run_study(
        model,
        targets,
        config.adapt,
        config.out,
        configurations=[Configuration.parse(name) for name in names],
        baselines=baselines,
        label_scatter=scatter,
        record={"model": config.model, "targets": config.targets},
        splits=miles_splits(targets, config),
        say=say,
    )
    print_table(rows)
    print(f"wrote table.json, predictions.ecsv, plots and adapters to {config.out}")
    return rows


def make_targets(libraries: Path, names: tuple[str, ...]) -> list[Target]:
    """Build the targets in the order of their names.

    Raises:
        ConfigError: a name that is not known.
    """
    unknown = [name for name in names if name not in (*miles.NAMES, *stelib.NAMES)]
    if unknown:
        raise ConfigError(
            f"there is no target {unknown[0]!r}: the targets are {', '.join((*miles.NAMES, *stelib.NAMES))}"
        )
    made: dict[str, Target] = {}
    for module in (miles, stelib):
        wanted = tuple(name for name in names if name in module.NAMES)
        made |= {target.name: target for target in (module.make_targets(libraries, wanted) if wanted else ())}
    return [made[name] for name in names]


def _library(target: str) -> ModuleType:
    """Return the module of a target."""
    return miles if target in miles.NAMES else stelib


def miles_splits(targets: Sequence[Target], config: Config) -> dict[str, Splits]:
    """Draw the splits of the MILES targets, whose numbers of stars are their own."""
    seeds = 1 if config.adapt.one_split else config.adapt.seeds
    return {
        target.name: draw_splits(
            len(target.labelled), seeds=seeds, train=config.miles_train, validate=miles.VALIDATE
        )
        for target in targets
        if target.name in miles.NAMES
    }


class Baselines:
    """Predictions of the baselines on the splits of the table."""

    def __init__(self, libraries: Path, source: Source, config: AdaptConfig, everything: bool = True) -> None:
        """Keep what all targets share.

        Args:
            libraries: folder of the stellar libraries.
            source: the stars from which the foundation model has learned.
            config: of the adaptation.
            everything: add The Cannon and The Payne, which take longer.
        """
        self.libraries, self.source, self.config, self.everything = libraries, source, config, everything

    def __call__(self, target: Target, splits: Splits) -> dict[str, FloatArray]:
        """Return predictions (S, n) by baseline, NaN outside the test set of a seed."""
        from experiments.baselines import run_baselines
        from experiments.spectrum_mlp import adapted, trained, zero_shot

        say(f"{target.name}: baselines")
        stars = target.labelled
        flux = self.source.fill.apply(stars.flux, stars.ivar if stars.has_ivar else None, stars.mask)
        seeds, n = len(splits), len(stars)
        network = trained(self.source, cache_folder(), say)
        mlp = zero_shot(network, flux)
        made = run_baselines(
            self.source.flux,
            self.source.labels[:, 2],
            flux,
            target.truth,
            splits.train,
            splits.test,
            zero_shot=mlp,
            jobs=core_count(),
        )
        full = {
            "mlp-zero-shot": np.broadcast_to(mlp, (seeds, n)),
            "mlp-lora": adapted(network, flux, target.truth, splits, self.config),
        }
        for name, predicted in made.items():
            full["mlp-affine" if name == "affine" else name] = splits.to_all_stars(predicted, n)
        return full | (self._generative(target, splits, flux) if self.everything else {})

    def _generative(self, target: Target, splits: Splits, flux: FloatArray) -> dict[str, FloatArray]:
        """Return predictions (S, n) of the generative models from the filled flux (n, p)."""
        from experiments.baselines import recalibrate_seeds
        from experiments.cannon import run_cannon
        from experiments.generative import pixel_variance
        from experiments.payne import Payne, delivered_fwhm

        seeds, n = len(splits), len(target.labelled)
        variance = pixel_variance(target.labelled)
        labels = _library(target.name).star_labels(self.libraries, target.labelled.id)
        cannon = run_cannon(flux, variance, labels, splits.train, splits.test, jobs=core_count())
        stars = self.source.smoothed(delivered_fwhm(target.fwhm)), self.source.labels
        shape = self.source.shape
        model = Payne.train(*stars, cache_folder(), say) if shape is None else Payne.emulate(*stars, shape)
        payne = model.predict(flux, variance)[:, 2]
        affine = recalibrate_seeds(payne, target.truth, splits.train, splits.test)
        return {
            "cannon": splits.to_all_stars(cannon, n),
            "payne": np.broadcast_to(payne, (seeds, n)),
            "payne-affine": splits.to_all_stars(affine, n),
        }


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, default=get_config(), description=__doc__)))
