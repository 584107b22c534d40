"""The paper's table on real stars: six configurations, two targets, error bars over seeds.

    python -m experiments.main_table --out runs/main_table

The source is MILES, of which the model saw no star that is in STELIB; the targets are STELIB as observed and
as a slitless survey would deliver it. For each seed 60 stars train, 10 validate and 56 test. Expect, with the
shipped model and 16 seeds, sigma 0.140 for LoRA4 on `stelib`, as zero-shot, and 0.194 on `stelib-grism`,
0.012 below zero-shot; README.md has the table.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.stelib import NAMES, label_floor, make_targets
from specjax import load
from specjax.adapt.adaptation import AdaptConfig
from specjax.adapt.configuration import CONFIGURATIONS
from specjax.adapt.study import run_study
from specjax.adapt.target import Splits, Target
from specjax.cache import cache_folder, use_compilation_cache
from specjax.prepare.pool import core_count
from specjax.pretrain import corpus
from specjax.report.results import Row, print_table
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.typing import FloatArray, IntArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set from the command line."""

    out: Path = Path("runs/main_table")
    """Folder for table.json, predictions, plots and adapters."""
    model: str = "mini"
    """A model folder, or "mini"."""
    targets: tuple[str, ...] = NAMES
    """Which of stelib, stelib-grism."""
    configurations: tuple[str, ...] = CONFIGURATIONS
    """Rows of the table."""
    baselines: bool = True
    """Whether to add the rows without a foundation model (needs the extra "baselines")."""
    adapt: AdaptConfig = AdaptConfig()
    """Seeds, splits and stages."""


def get_config() -> Config:
    """Return the configuration of the demo."""
    return Config()


def main(config: Config) -> list[Row]:
    """Run the table, write the folder and print it."""
    use_compilation_cache()
    libraries = fetch_stellar_libraries()
    targets = make_targets(libraries, config.targets)
    floor = {target.name: label_floor(libraries, target) for target in targets if target.name == "stelib"}
    baselines = Baselines(libraries) if config.baselines else None
    rows = run_study(
        load(config.model),
        targets,
        config.adapt,
        config.out,
        configurations=config.configurations,
        baselines=baselines,
        floor=floor,
        record={"model": config.model, "targets": config.targets},
        say=_say,
    )
    print_table(rows)
    print(f"table.json, predictions.ecsv, plots and adapters are in {config.out}")
    return rows


class Baselines:
    """The rows without a foundation model, from the same splits."""

    def __init__(self, libraries: Path) -> None:
        """Build the source corpus once for all targets."""
        self.source, self.fill = corpus.build(libraries)

    def __call__(self, target: Target, splits: Splits) -> dict[str, FloatArray]:
        """Return predictions (S, n) by baseline; NaN for stars that a seed does not test."""
        from experiments.baselines import run_baselines
        from experiments.spectrum_mlp import zero_shot

        _say(f"{target.name}: baselines")
        grid = target.labelled
        flux = self.fill.apply(grid.flux, grid.ivar, grid.mask)
        seeds, n = len(splits), len(grid)
        mlp = zero_shot(self.source, flux, cache_folder(), _say)
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
        full = {"mlp-zero-shot": np.broadcast_to(mlp, (seeds, n))}
        for name, predicted in made.items():
            full["mlp-affine" if name == "affine" else name] = _spread(predicted, splits.test, n)
        return full


def _spread(predicted: FloatArray, rows: IntArray, n: int) -> FloatArray:
    whole = np.full((len(rows), n), np.nan)
    np.put_along_axis(whole, rows, predicted, axis=1)
    return whole


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, default=get_config(), description=__doc__)))
