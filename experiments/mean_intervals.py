"""Coverage of the intervals that `specjax predict` writes: those of the mean over the seeds of an adapter.

    python -m experiments.mean_intervals --out runs/mean_intervals

A run of `specjax adapt` measures the intervals of single seeds, because every labelled star belongs to the
training set of some seed. Here, stars are set aside first: each of several times, some of the labelled stars
are taken as if they were all. The seeds split these among themselves, their mean is calibrated on them, and
the others are predicted. The run folder has calibration.json and calibration.ecsv, and no adapters. Expected
with the models that ship: see docs/uncertainties.md.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.suite import cases, frame
from specjax.adapt.adaptation import Adaptation
from specjax.adapt.configuration import Configuration
from specjax.adapt.fusing import mean_of_seeds
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.uncertainties import calibration_scores, intervals_of_mean
from specjax.calibration.calibration import Intervals
from specjax.progress import say
from specjax.report.results import Row, write_calibration
from specjax.typing import IntArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command line."""

    out: Path = Path("runs/mean_intervals")
    """Folder to write: calibration.json and calibration.ecsv."""
    targets: tuple[str, ...] = ("stelib", "stelib-grism", "miles", "miles-grism")
    """Targets: miles, miles-grism, stelib, stelib-grism."""
    configurations: tuple[str, ...] = ("lora2", "lora4")
    """What is adapted."""
    times: int = 8
    """How often stars are set aside."""
    seeds: int = 8
    """Seeds of each adapter."""
    train: int = 60
    """Training stars of each seed."""
    validate: int = 10
    """Validation stars of each seed."""


def main(config: Config) -> list[Row]:
    """Measure the coverage on all targets, write the folder and print the rows."""
    from specjax.cache import use_compilation_cache

    use_compilation_cache()
    given = frame.Config(targets=config.targets, seeds=config.times)
    rows = [row for case in cases.load_cases(given) for row in _rows(case, config)]
    config.out.mkdir(parents=True, exist_ok=True)
    write_calibration(config.out, rows)
    for row in rows:
        print(describe(row))
    return rows


def _rows(case: cases.Case, config: Config) -> list[Row]:
    """Return the scores of all configurations on one target."""
    inputs = TargetInputs(case.model, case.target)
    rows: list[Row] = []
    for name in config.configurations:
        parts, means = [], []
        for time in range(config.times):
            say(f"{case.name}: {name}, stars set aside {time + 1} of {config.times} times")
            splits = split_known(case.splits, time, config)
            adaptation = Adaptation(case.model, case.target, splits, AdaptConfig(), inputs=inputs)
            result = adaptation.run(Configuration.parse(name))
            mean = mean_of_seeds(result)
            parts.append(intervals_of_mean(case.target, splits, mean, case.splits.test[time]))
            means.append(mean)
        joined = Intervals(*(np.concatenate(each) for each in zip(*parts, strict=True)))
        predictions = np.concatenate([mean.predictions for mean in means])
        whole = dataclasses.replace(means[0], predictions=predictions)
        rows += calibration_scores(case.target, case.splits, [whole], [joined])
    return rows


def split_known(outer: Splits, time: int, config: Config) -> Splits:
    """Split the stars that are not set aside, differently for each seed.

    Args:
        outer: splits whose test stars are set aside; all others are known.
        time: which of them.
        config: numbers of seeds and of stars.

    Returns:
        `config.seeds` splits of the known stars, all with the stars that are set aside as test stars.
    """
    known = outer.unseen[time]
    order = np.stack([np.random.default_rng([time, seed]).permutation(known) for seed in range(config.seeds)])
    end = config.train + config.validate
    test: IntArray = np.repeat(outer.test[time][None], config.seeds, axis=0)
    return Splits(train=order[:, : config.train], validate=order[:, config.train : end], test=test)


def describe(row: Row) -> str:
    """Describe a row in one line: coverage in per cent, mean widths and CRPS."""
    coverage = (
        f"{100 * row[f'coverage{level}']:.1f}"
        f" [{100 * row[f'coverage{level}_lo']:.0f}, {100 * row[f'coverage{level}_hi']:.0f}]"
        for level in (68, 95)
    )
    widths = f"{row['width68']:.2f}, {row['width95']:.2f}"
    where = f"{row['target']}, {row['configuration']}, {row['subset']}"
    return f"{where:<50} 68%: {' 95%: '.join(coverage)}  widths {widths}  CRPS {row['crps']:.3f}"


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, description=__doc__)))
