"""One star, two instruments: do the predictions for it agree?

    python -m experiments.suite.two_instruments --out runs/experiments/two_instruments

MILES and STELIB have stars in common. For each seed half of them are test stars in both libraries, and none
of the training or validation stars of either; the model is adapted to each library with its own labels. The
scatter of the differences between the two predictions for a star contains no error of a label that both
share. Expected: the model as it is agrees best with itself. Adapted models take on the labels of the two
libraries, which differ by 0.1 dex, and gain accuracy against these labels, not agreement.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.libraries import targets_of
from experiments.miles import TRAIN, VALIDATE
from experiments.suite import cases, figures, frame
from experiments.suite.cases import Case
from experiments.suite.frame import BASELINE, Column, Kept, Results, Row, beside_strongest, figure_of
from experiments.suite.pair_targets import first_matches
from experiments.suite.runner import Runner
from specjax import load
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.errors import ConfigError, DataError
from specjax.pretrain.corpus import in_range, label_table, read_miles
from specjax.progress import Say
from specjax.report import intervals
from specjax.report.metrics import bias, robust_sigma
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.surveys import miles, stelib
from specjax.typing import FloatArray, IntArray, StrArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = "labels of the libraries"

SIDES = ("miles_sigma", "stelib_sigma")
"""Keys of the scatter against the labels of each library, on the same stars."""

COLUMNS = (
    Column(name="name", heading="row"),
    Column(name="n_stars", heading="stars per seed"),
    Column(name="n_distinct", heading="stars"),
    Column(name="sigma", heading="σ of the difference", unit="dex"),
    Column(name="bias", heading="offset", unit="dex", signed=True),
    Column(name="sigma_gain", heading="gain in σ", unit="dex", signed=True),
    Column(name=SIDES[0], heading="σ of MILES labels", unit="dex"),
    Column(name=SIDES[1], heading="σ of STELIB labels", unit="dex"),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Settings of `frame.Config`, and those below; `target` and `targets` are not used.

    Attributes:
        configurations: what is adapted to each library.
        tested: share of the stars in common that a seed tests.
    """

    targets: tuple[str, ...] = ("miles", "stelib")
    seeds: int = 4
    configurations: tuple[str, ...] = ("lora2", "lora1+lora2", "lora4")
    tested: float = 0.5


def get_config() -> Config:
    """Return the default settings."""
    return Config()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """Two surveys, and the stars that both have labelled.

    Attributes:
        targets: the two surveys.
        rows: (k, 2) rows of the stars in common among the labelled stars of each.
    """

    targets: tuple[Target, Target]
    rows: IntArray


def run(config: Config, out: Path, say: Say) -> Results:
    """Adapt to both libraries and compare the predictions for the stars in common."""
    if config.target is not None:
        raise ConfigError("this experiment compares MILES and STELIB: it takes no survey of your own")
    if config.preset == "paper" and config.model is None:
        raise ConfigError("the preset paper needs the folder of converted weights: --model DIR")
    kept = Kept(out, config)
    shared = load_shared(config.label)
    rows = beside_strongest([{**row, "target": "both"} for row in _rows(config, shared, kept, say)])
    return Results(
        name="two_instruments",
        title="One star, two instruments",
        question="Do the predictions for a star that two instruments have observed agree?",
        method=(
            f"Predictions for the MILES spectrum of a star minus those for its STELIB spectrum;"
            f" {len(shared.rows)} stars in common, half of which test each of {config.seeds} seeds and train"
            " none of its two adapters. Gains are over the model as it is with the same head."
        ),
        columns=COLUMNS,
        rows=rows,
        sentences=sentences(config, rows),
        draw=lambda figure: draw(figure, rows),
    )


def load_shared(label: str) -> Shared:
    """Read both libraries; all MILES stars with labels in range may be labelled ones."""
    libraries = fetch_stellar_libraries()
    first = read_miles(libraries)
    everything = np.ones(len(first), bool)
    second = stelib.read(libraries / "stelib")
    usable = in_range(label_table(second))
    one = targets_of(first, miles.FWHM, everything, libraries, ("miles",), label)[0]
    other = targets_of(second, stelib.FWHM, usable, libraries, ("stelib",), label)[0]
    names = [target.labelled.meta["name"].tolist() for target in (one, other)]
    return Shared(targets=(one, other), rows=np.stack(first_matches(*names), axis=1))


def paired_splits(
    counts: tuple[int, int],
    shared: IntArray,
    *,
    seeds: int,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    tested: float,
) -> tuple[Splits, Splits]:
    """Draw splits of two surveys whose test stars are the same.

    Args:
        counts: labelled stars of each survey.
        shared: (k, 2) rows of the stars in common.
        seeds: splits to draw.
        sizes: training and validation stars of each survey.
        tested: share of the stars in common that a seed tests.

    Returns:
        Splits of both. Test star j of a seed is the same star in both, and no test star of the seed is among
        its training or validation stars in either.

    Raises:
        DataError: a survey has too few stars beside the tested ones.
    """
    number = round(tested * len(shared))
    orders = [np.random.default_rng([seed, len(shared)]).permutation(len(shared)) for seed in range(seeds)]
    test = np.stack([shared[order[:number]] for order in orders])  # (S, h, 2)
    made = []
    for side, (count, (train, validate)) in enumerate(zip(counts, sizes, strict=True)):
        if count - number < train + validate:
            left = f"{count - number} stars beside the tested ones"
            raise DataError(f"{left} are too few for {train} to train and {validate} to validate")
        rest = [_others(count, test[seed, :, side], seed, train + validate) for seed in range(seeds)]
        rows = np.stack(rest)
        made.append(Splits(train=rows[:, :train], validate=rows[:, train:], test=test[:, :, side]))
    return made[0], made[1]


def _others(count: int, test: IntArray, seed: int, number: int) -> IntArray:
    """Draw that many rows that are not test stars."""
    order = np.random.default_rng([seed, count, 1]).permutation(count)
    return np.asarray(order[~np.isin(order, test)][:number])


def _rows(config: Config, shared: Shared, kept: Kept, say: Say) -> list[Row]:
    model = load(config.model or "mini-physics")
    counts = tuple(len(target.labelled) for target in shared.targets)
    wanted = ((TRAIN, VALIDATE), (cases.TRAIN, cases.VALIDATE))
    train, validate = config.train, config.validate
    sizes = [
        (own if train is None else train, some if validate is None else validate) for own, some in wanted
    ]
    splits = paired_splits(
        (counts[0], counts[1]),
        shared.rows,
        seeds=config.seeds,
        sizes=(sizes[0], sizes[1]),
        tested=config.tested,
    )
    both = [
        Runner(Case(model=model, target=target, splits=own), kept, say)
        for target, own in zip(shared.targets, splits, strict=True)
    ]
    stars = shared.targets[0].labelled.id[splits[0].test]

    truth = [own.of_test_stars(target.truth) for target, own in zip(shared.targets, splits, strict=True)]

    def taken(values: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
        first, second = (own.of_test_stars(one) for one, own in zip(values, splits, strict=True))
        return first, second

    def row(name: str, kind: str, pair: tuple[FloatArray, FloatArray], reference: Any = None) -> Row:
        before = None if reference is None else reference[0] - reference[1]
        errors = [score(one - true, stars) for one, true in zip(pair, truth, strict=True)]
        accuracy = {
            f"{side}{end}": error[f"sigma{end}"]
            for side, error in zip(SIDES, errors, strict=True)
            for end in ("", "_lo", "_hi")
        }
        made = {"name": name, "kind": kind, **score(pair[0] - pair[1], stars, before)}
        return made if kind == "labels" else {**made, **accuracy}

    made = [row(LABELS, "labels", (truth[0], truth[1]))]
    zero_shot: dict[str, tuple[FloatArray, FloatArray]] = {}
    for name in config.configurations:
        reference = Configuration.parse(name).zero_shot.name
        if reference not in zero_shot:
            zero_shot[reference] = taken([one.predictions(reference) for one in both])
            made.append(row(reference, "zero-shot", zero_shot[reference]))
        found = taken([one.predictions(name) for one in both])
        made.append(row(name, "adapted", found, zero_shot[reference]))
    others = [one.baselines() for one in both]
    return [*made, *(row(name, "baseline", taken([one[name] for one in others])) for name in others[0])]


def score(difference: FloatArray, stars: StrArray, reference: FloatArray | None = None) -> Row:
    """Return scatter and offset of differences with intervals over stars, means over seeds.

    Args:
        difference: (S, h).
        stars: (S, h) identifiers.
        reference: (S, h) differences that the gain refers to.

    Returns:
        sigma, bias and, with a reference, sigma_gain, each with _lo and _hi; n_stars per seed and n_distinct.
    """
    distinct, index = np.unique(stars, return_inverse=True)
    index, weights = index.reshape(stars.shape), intervals.star_weights(len(distinct))
    seeds = [(row, weights[:, place]) for row, place in zip(difference, index, strict=True)]
    zero = np.zeros(difference.shape[1])
    sigma = [float(robust_sigma(row)) for row in difference]
    drawn = np.mean([intervals.weighted_sigma(row, w) for row, w in seeds], axis=0)
    offset = [float(bias(zero, row)) for row in difference]
    drawn_offset = np.mean([intervals.weighted_bias(zero, row, w) for row, w in seeds], axis=0)
    made: Row = {"n_stars": difference.shape[1], "n_distinct": len(distinct)}
    made |= _interval("sigma", float(np.mean(sigma)), drawn)
    made |= _interval("bias", float(np.mean(offset)), drawn_offset)
    if reference is not None:
        before = np.mean([float(robust_sigma(row)) for row in reference])
        others = zip(reference, (w for _, w in seeds), strict=True)
        drawn_before = np.mean([intervals.weighted_sigma(row, w) for row, w in others], axis=0)
        made |= _interval("sigma_gain", float(before - np.mean(sigma)), drawn_before - drawn)
    return made


def _interval(name: str, value: float, drawn: FloatArray) -> Row:
    low, high = intervals.bootstrap_interval(drawn, value)
    return {name: value, f"{name}_lo": low, f"{name}_hi": high}


def sentences(config: Config, rows: Sequence[Row]) -> list[str]:
    """Say how much the two predictions differ, as the model is and adapted."""
    by = {row["name"]: row for row in rows}
    best = min((by[name] for name in config.configurations), key=lambda row: float(row["sigma"]))
    zero = next(row for row in rows if row["kind"] == "zero-shot")
    return [
        f"The two predictions for a star differ by {figure_of(zero)} (robust scatter), with an offset of"
        f" {figure_of(zero, 'bias', signed=True)}, with the model as it is ({zero['name']}); adapted to each"
        f" library with {best['name']}, by {figure_of(best)}, with an offset of"
        f" {figure_of(best, 'bias', signed=True)}.",
        f"The labels of the two libraries differ by {figure_of(by[LABELS])}, and the predictions of"
        f" {best['baseline']}, the baseline whose predictions agree best, by"
        f" {figure_of(best, 'baseline_sigma')}. Predictions that agree need not be right: against the labels"
        f" of MILES, {best['name']} has a scatter of {figure_of(best, SIDES[0])}, {best['baseline']} of"
        f" {figure_of(by[best['baseline']], SIDES[0])}.",
    ]


def draw(figure: "Figure", rows: Sequence[Row]) -> None:
    """Draw the scatter of the differences of all rows."""
    shown = [{**row, "kind": "baseline" if row["kind"] == "labels" else row["kind"]} for row in rows]
    axis = figure.subplots()
    figures.draw_bars(axis, shown, [str(row["name"]) for row in shown])
    axis.set_xlabel("robust scatter of the difference (dex)")


if __name__ == "__main__":
    frame.command("two_instruments", get_config(), run, __doc__)
