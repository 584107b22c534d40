"""The paper's table on real stars: six configurations, two targets, errors over seeds.

    python -m experiments.main_table --out runs/main_table

The source survey is MILES without the stars that are also in STELIB; the targets are STELIB as observed and
as a slitless survey would deliver it. Each seed splits the stars into 60 for training, 10 for validation and
56 for testing. Expected with the shipped model and 16 seeds: LoRA4 reaches sigma([Fe/H]) = 0.139 dex on
`stelib`, the same as zero-shot, and 0.195 dex on `stelib-grism`, 0.011 dex below zero-shot. README.md has the
table.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.stelib import NAMES, label_scatter, make_targets, star_labels
from specjax import load
from specjax.adapt.configuration import PAPER, Configuration
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.study import run_study
from specjax.adapt.target import Target
from specjax.cache import cache_folder, use_compilation_cache
from specjax.lora import HEADS
from specjax.prepare.pool import core_count
from specjax.pretrain import corpus
from specjax.progress import say
from specjax.report.results import Row, print_table
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.typing import FloatArray, IntArray

EXTRA = tuple(f"{kind}-{head}" for kind in ("residual", "scratch", "full") for head in HEADS)
"""Rows for what the paper does not train."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command line."""

    out: Path = Path("runs/main_table")
    """Folder to write: table.json, predictions, plots and adapters."""
    model: str = "mini"
    """Model folder, or "mini"."""
    targets: tuple[str, ...] = NAMES
    """Targets: stelib, stelib-grism."""
    configurations: tuple[str, ...] = PAPER
    """Rows of the table."""
    everything: bool = False
    """Add the rows that take longer: residual heads, heads from scratch, full fine-tuning, The Cannon and The
    Payne."""
    baselines: bool = True
    """Add rows for methods without a foundation model (needs the extra "baselines")."""
    adapt: AdaptConfig = AdaptConfig()
    """Seeds, splits and training stages."""


def get_config() -> Config:
    """Return the configuration of the demo."""
    return Config()


def main(config: Config) -> list[Row]:
    """Run all configurations, write the folder and print the table."""
    use_compilation_cache()
    libraries = fetch_stellar_libraries()
    targets = make_targets(libraries, config.targets)
    scatter = {target.name: label_scatter(libraries, target) for target in targets if target.name == "stelib"}
    baselines = Baselines(libraries, config.adapt, config.everything) if config.baselines else None
    names = (*config.configurations, *(EXTRA if config.everything else ()))
    rows = run_study(
        load(config.model),
        targets,
        config.adapt,
        config.out,
        configurations=[Configuration.parse(name) for name in names],
        baselines=baselines,
        label_scatter=scatter,
        record={"model": config.model, "targets": config.targets},
        say=say,
    )
    print_table(rows)
    print(f"wrote table.json, predictions.ecsv, plots and adapters to {config.out}")
    return rows


class Baselines:
    """Predictions of the baselines on the splits of the table."""

    def __init__(self, libraries: Path, config: AdaptConfig, everything: bool = True) -> None:
        """Build the source corpus, once for all targets.

        Args:
            libraries: folder of the stellar libraries.
            config: of the adaptation.
            everything: add The Cannon and The Payne, which take longer.
        """
        self.libraries, self.config, self.everything = libraries, config, everything
        self.source, self.fill = corpus.build(libraries)

    def __call__(self, target: Target, splits: Splits) -> dict[str, FloatArray]:
        """Return predictions (S, n) by baseline, NaN outside the test set of a seed."""
        from experiments.baselines import run_baselines
        from experiments.spectrum_mlp import adapted, trained, zero_shot

        say(f"{target.name}: baselines")
        stars = target.labelled
        flux = self.fill.apply(stars.flux, stars.ivar if stars.has_ivar else None, stars.mask)
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
            full["mlp-affine" if name == "affine" else name] = _scatter_to_stars(predicted, splits.test, n)
        return full | (self._generative(target, splits, flux) if self.everything else {})

    def _generative(self, target: Target, splits: Splits, flux: FloatArray) -> dict[str, FloatArray]:
        """Return predictions (S, n) of the generative models from the filled flux (n, p)."""
        from experiments.baselines import recalibrate_seeds
        from experiments.cannon import run_cannon
        from experiments.generative import pixel_variance
        from experiments.payne import Payne, source_flux

        seeds, n = len(splits), len(target.labelled)
        variance = pixel_variance(target.labelled)
        labels = star_labels(self.libraries, target.labelled.id)
        cannon = run_cannon(flux, variance, labels, splits.train, splits.test, jobs=core_count())
        source = source_flux(self.libraries, self.source, self.fill, target.fwhm)
        model = Payne.train(source, self.source.labels, cache_folder(), say)
        payne = model.predict(flux, variance)[:, 2]
        affine = recalibrate_seeds(payne, target.truth, splits.train, splits.test)
        return {
            "cannon": _scatter_to_stars(cannon, splits.test, n),
            "payne": np.broadcast_to(payne, (seeds, n)),
            "payne-affine": _scatter_to_stars(affine, splits.test, n),
        }


def _scatter_to_stars(predicted: FloatArray, rows: IntArray, n: int) -> FloatArray:
    """Place predictions (S, b) in the columns ``rows`` (S, b) of an array (S, n) of NaN."""
    whole = np.full((len(rows), n), np.nan)
    np.put_along_axis(whole, rows, predicted, axis=1)
    return whole


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, default=get_config(), description=__doc__)))
