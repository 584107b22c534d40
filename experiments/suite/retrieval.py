"""Two surveys, one star: retrieval and translation between LAMOST-like and Gaia XP spectra.

    python -m experiments.suite.retrieval --out runs/experiments/retrieval

For a star's LAMOST-like spectrum, its Gaia XP partner is looked for among those of all test stars, by the
angle between the projected vectors, and the spectrum is translated by the decoders; and the other way round.
The adapted rows align the LAMOST tower with Gaia XP by the contrastive loss on pairs without labels; how long
is selected on other pairs. The Gaia XP side is made of observed spectra: of the same one, or, for
stelib-miles, of that of another telescope. Expected: a linear regression on the pairs is hard to beat, and
alignment helps where the instrument differs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.suite import frame
from experiments.suite.frame import Column, Kept, Results, Row, figure_of
from experiments.suite.pair_targets import SpectrumPairs, load_pairs
from experiments.suite.pairs import (
    Ridge,
    mean_over_stars,
    median_errors,
    nearest_ranks,
    partner_ranks,
    sample_errors,
    share_within,
)
from specjax import load
from specjax.adapt.configuration import Configuration
from specjax.adapt.inputs import TargetInputs
from specjax.adapt.objectives import Objective
from specjax.adapt.splits import Splits
from specjax.adapt.stage import Stage, Trainer
from specjax.adapt.target import Target
from specjax.foundation import Foundation
from specjax.progress import Say
from specjax.report import style
from specjax.train.optimizer import GroupSchedule
from specjax.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZERO_SHOT, RIDGE, MEAN = "zero-shot", "ridge regression", "mean spectrum"

SNAPSHOTS = 3
"""States of the alignment that are selected from, besides the model as it is."""

COLUMNS = (
    Column(name="target", heading="pairs"),
    Column(name="name", heading="row"),
    Column(name="n_stars", heading="test stars"),
    Column(name="top1", heading="XP found first"),
    Column(name="top5", heading="among 5"),
    Column(name="back1", heading="LAMOST found first"),
    Column(name="back5", heading="among 5"),
    Column(name="error", heading="error of XP flux"),
    Column(name="error_back", heading="error of LAMOST flux"),
    Column(name="baseline", heading="strongest baseline"),
    Column(name="baseline_top1", heading="its XP found first"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Settings of `frame.Config`, and those below.

    Attributes:
        aligned: what is aligned, configurations of parts of the tower.
        steps: of the alignment, a multiple of 3: the state after each third is selected from.
        batch: pairs in a step.
        rate: learning rate.
    """

    targets: tuple[str, ...] = ("miles", "miles-grism", "stelib-miles")
    seeds: int = 2
    aligned: tuple[str, ...] = ("lora3", "lora1+lora3")
    steps: int = 60
    batch: int = 64
    rate: float = 2e-3

    @property
    def stage(self) -> Stage:
        """Return the stage of the alignment."""
        return Stage(
            steps=self.steps,
            batch=self.batch,
            snapshots=SNAPSHOTS,
            tower=GroupSchedule(learning_rate=self.rate, warmup=0.5),
            objective=Objective(label=0.0, contrastive=1.0),
        )


def get_config() -> Config:
    """Return the default settings."""
    return Config()


def run(config: Config, out: Path, say: Say) -> Results:
    """Retrieve and translate with each model, as it is and aligned."""
    kept = Kept(out, config)
    rows: list[Row] = []
    curves: dict[str, dict[str, FloatArray]] = {}
    for pairs in load_pairs(config):
        found = _outcomes(config, pairs, kept, say)
        rows += _beside_strongest([_row(pairs, name, one) for name, one in found.items()])
        curves[pairs.name] = {name: median_errors(one["error"], axis=0) for name, one in found.items()}
    return Results(
        name="retrieval",
        title="Retrieval and translation",
        question=(
            "Can a star's Gaia XP spectrum be found, or predicted, from its LAMOST-like one, and the other"
            " way round?"
        ),
        method=(
            "Shares of test stars whose partner is the most similar, or among the first five, of all test"
            f" stars; errors are |predicted/true - 1|, medians over samples, then means over stars;"
            f" {config.seeds} seeds. Ridge regression is trained on the pairs that the alignment uses."
        ),
        columns=COLUMNS,
        rows=rows,
        sentences=[one for name in curves for one in sentences([r for r in rows if r["target"] == name])],
        draw=lambda figure: draw(figure, curves),
    )


def _outcomes(config: Config, pairs: SpectrumPairs, kept: Kept, say: Say) -> dict[str, dict[str, AnyArray]]:
    """Return, by row, the ranks and errors of the test stars; seeds are stacked."""
    model = load(config.model or "mini-physics")
    made = {
        ZERO_SHOT: kept.arrays(f"{pairs.name}/zero-shot", lambda: _outcome([model], pairs)),
        RIDGE: kept.arrays(f"{pairs.name}/ridge", lambda: _of_ridge(model, pairs)),
        MEAN: kept.arrays(f"{pairs.name}/mean", lambda: _of_mean(model, pairs)),
    }
    for name in config.aligned:

        def adapted(name: str = name) -> Mapping[str, AnyArray]:
            say(f"{pairs.name}: {name}")
            return _outcome(align(model, pairs, name, config.stage, config.seeds, say), pairs)

        made[name] = kept.arrays(f"{pairs.name}/{name}", adapted)
    return made


def align(
    model: Foundation, pairs: SpectrumPairs, name: str, stage: Stage, seeds: int, say: Say
) -> list[Foundation]:
    """Align the LAMOST tower with Gaia XP on the training pairs: one model per seed.

    The model as it is, or the state of the training whose partners of the validation pairs have the smallest
    mean logarithm of the rank, is taken for each seed.

    Args:
        model: to start from.
        pairs: training and validation pairs.
        name: configuration of parts of the tower.
        stage: of the training.
        seeds: number of trainings.
        say: receives lines of progress.
    """
    lamost, xp = pairs.lamost[pairs.train], pairs.xp[pairs.train]
    nothing = np.full(len(pairs.train), np.nan)
    target = Target(
        name=pairs.name,
        labelled=lamost[:1],
        truth=nothing[:1],
        label=model.config.labels[0],
        unlabelled=lamost,
        unlabelled_xp=xp,
        fe_h=nothing[:1],
    )
    rows: IntArray = np.zeros((seeds, 1), int)
    splits = Splits(train=rows, validate=rows[:, :0], test=rows[:, :0])
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(np.arange(seeds))
    trainer = Trainer(model, TargetInputs(model, target), splits, keys, say=say)
    leaves = trainer.train(Configuration.parse(name), stage).leaves
    z_xp = model.embed(pairs.xp[pairs.validate])
    found = []
    for seed in range(seeds):
        states = [model] + [
            model.adapted(jax.tree.map(lambda leaf, at=(seed, 0, step): leaf[at], leaves))
            for step in range(stage.snapshots)
        ]
        costs = [
            np.log(partner_ranks(state.embed(pairs.lamost[pairs.validate]), z_xp)).mean() for state in states
        ]
        found.append(states[int(np.argmin(costs))])
    return found


def _outcome(models: Sequence[Foundation], pairs: SpectrumPairs) -> dict[str, AnyArray]:
    """Return ranks (S, n) in both directions, and errors of the test stars averaged over models (n, p)."""
    lamost, xp = pairs.lamost[pairs.test], pairs.xp[pairs.test]
    z_xp = models[0].embed(xp)
    there, back, error = [], [], []
    for model in models:
        z = model.embed(lamost)
        there.append(partner_ranks(z, z_xp))
        back.append(partner_ranks(z_xp, z))
        error.append(sample_errors(model.translate(lamost, target="gaia_xp"), xp.flux, ~xp.mask))
    translated = models[0].translate(xp, target="lamost")  # alignment does not change this direction
    return {
        "there": np.stack(there),
        "back": np.stack(back),
        "error": np.mean(error, axis=0),
        "error_back": sample_errors(translated, lamost.flux, ~lamost.mask),
    }


def _of_ridge(model: Foundation, pairs: SpectrumPairs) -> dict[str, AnyArray]:
    """Return the same for linear regression on the training pairs; the partner is the nearest spectrum."""
    lamost, xp = pairs.lamost[pairs.test], pairs.xp[pairs.test]
    filled, filled_xp = _filled(model, pairs)
    there = Ridge.fit(filled[pairs.train], filled_xp[pairs.train])(filled[pairs.test])
    back = Ridge.fit(filled_xp[pairs.train], filled[pairs.train])(filled_xp[pairs.test])
    return {
        "there": nearest_ranks(there, xp.flux, ~xp.mask)[None],
        "back": nearest_ranks(back, lamost.flux, ~lamost.mask)[None],
        "error": sample_errors(there, xp.flux, ~xp.mask),
        "error_back": sample_errors(back, lamost.flux, ~lamost.mask),
    }


def _of_mean(model: Foundation, pairs: SpectrumPairs) -> dict[str, AnyArray]:
    """Return the same for the mean of the training spectra, which finds nothing."""
    lamost, xp = pairs.lamost[pairs.test], pairs.xp[pairs.test]
    means = [np.tile(flux[pairs.train].mean(axis=0), (len(lamost), 1)) for flux in _filled(model, pairs)]
    last = np.full((1, len(lamost)), len(lamost))
    return {
        "there": last,
        "back": last,
        "error": sample_errors(means[1], xp.flux, ~xp.mask),
        "error_back": sample_errors(means[0], lamost.flux, ~lamost.mask),
    }


def _filled(model: Foundation, pairs: SpectrumPairs) -> tuple[FloatArray, FloatArray]:
    """Return the flux of both sides with missing LAMOST pixels filled, XP samples by their training mean."""
    flux = np.asarray(model.model_input(pairs.lamost).flux, np.float64)
    flux = np.where(np.isfinite(flux), flux, 1.0)
    masked = np.ma.masked_array(pairs.xp.flux, pairs.xp.mask)
    mean = masked[pairs.train].mean(axis=0).filled(0.0)
    return flux, np.where(pairs.xp.mask, mean, pairs.xp.flux)


def _row(pairs: SpectrumPairs, name: str, outcome: Mapping[str, AnyArray]) -> Row:
    """Return shares and errors with intervals over stars."""
    kind = {ZERO_SHOT: "zero-shot", RIDGE: "baseline", MEAN: "baseline"}.get(name, "adapted")
    row: Row = {"target": pairs.name, "name": name, "kind": kind, "n_stars": len(pairs.test)}
    scores = {
        "top1": share_within(outcome["there"], 1),
        "top5": share_within(outcome["there"], 5),
        "back1": share_within(outcome["back"], 1),
        "back5": share_within(outcome["back"], 5),
        "error": mean_over_stars(median_errors(outcome["error"], axis=1)),
        "error_back": mean_over_stars(median_errors(outcome["error_back"], axis=1)),
    }
    return row | {f"{key}{end}": value for key, found in scores.items() for end, value in found.items()}


def _beside_strongest(rows: Sequence[Row]) -> list[Row]:
    """Name the baseline that finds most partners beside every row."""
    best = max((row for row in rows if row["kind"] == "baseline"), key=lambda row: row["top1"])
    beside: dict[str, Any] = {f"baseline_top1{end}": best[f"top1{end}"] for end in ("", "_lo", "_hi")}
    return [{**row, "baseline": best["name"], **beside} for row in rows]


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say how often partners are found and how well spectra are translated, for one set of pairs."""
    by = {row["name"]: row for row in rows}
    adapted = [row for row in rows if row["kind"] == "adapted"]
    zero, ridge = by[ZERO_SHOT], by[RIDGE]
    found = ", ".join(f"{figure_of(row, 'top1', '')} aligned by {row['name']}" for row in adapted)
    errors = ", ".join(f"{figure_of(row, 'error', '')} aligned by {row['name']}" for row in adapted)
    return [
        f"On {zero['target']}, the Gaia XP partner is the most similar of {zero['n_stars']} for a share of"
        f" {figure_of(zero, 'top1', '')} of the stars with the model as it is, {found}, and"
        f" {figure_of(ridge, 'top1', '')} with ridge regression on the same pairs (by chance:"
        f" {1 / zero['n_stars']:.3f}).",
        f"The flux of the Gaia XP samples is predicted to {figure_of(zero, 'error', '')} by the model as it"
        f" is, {errors}, {figure_of(ridge, 'error', '')} by ridge regression and"
        f" {figure_of(by[MEAN], 'error', '')} by the mean spectrum.",
    ]


def draw(figure: "Figure", curves: Mapping[str, Mapping[str, FloatArray]]) -> None:
    """Draw the median error of each Gaia XP sample, for the first set of pairs."""
    from specjax.wavelength import GAIA_XP_WAVELENGTH

    axis, first = figure.subplots(), next(iter(curves.values()))
    looks = style.colours(first)
    for name, error in first.items():
        grid = GAIA_XP_WAVELENGTH if len(error) == len(GAIA_XP_WAVELENGTH) else np.arange(len(error))
        line = {RIDGE: "--", MEAN: "--", ZERO_SHOT: ":"}.get(name, "-")
        above = 3 if name == ZERO_SHOT else 2  # where the alignment changes nothing, both are seen
        axis.plot(grid / 10, error, color=looks[name], lw=1, ls=line, zorder=above, label=name)
    axis.set(
        yscale="log", ylim=(1e-3, None), xlabel="wavelength (nm)", ylabel="median error of the Gaia XP flux"
    )
    axis.set_title(next(iter(curves)), fontsize=8)
    axis.legend(frameon=False)


if __name__ == "__main__":
    frame.command("retrieval", get_config(), run, __doc__)
