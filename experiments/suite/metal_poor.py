"""Metal-poor stars, on which the paper's adaptations fail: what mends it?

    python -m experiments.suite.metal_poor --out runs/experiments/metal_poor

Scores of the stars below [Fe/H] = -1, of which a training set has few. Tried are splits in which all parts
have the same distribution of [Fe/H]; the mean with an adapted plain network, or a mean with the weight that
is best on the validation stars of the seed; an offset of the model as it is that depends on metallicity, with
a prior from simulated surveys (`experiments.offset_prior`); a small head on the frozen features that corrects
the label, with one scatter for all stars or with a scatter that it predicts (`experiments.scatter_head`); and
simulated metal-poor stars in the training set. No number is tuned on test stars. Expected where the
instrument differs: averaging helps most, and no remedy reaches the plain network.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.offset_prior import OffsetPrior
from experiments.scatter_head import components, fit_correction
from experiments.suite import cases, figures, frame
from experiments.suite.cases import Case
from experiments.suite.frame import BASELINE, Column, Kept, Results, Row, beside_strongest, figure_of
from experiments.suite.runner import Runner
from specjax.adapt.configuration import Configuration
from specjax.adapt.splits import Splits, draw_splits
from specjax.errors import ConfigError
from specjax.flags import Flag
from specjax.preprocess import to_lamost
from specjax.pretrain import simulated
from specjax.pretrain.corpus import MILES_FWHM
from specjax.progress import Say
from specjax.report.results import Kind
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.simulate.emulator import shipped
from specjax.simulate.flaws import Flaws, spoil
from specjax.simulate.labels import LABELS
from specjax.spectra import Spectra
from specjax.surveys import mastar
from specjax.train.losses import pseudo_huber
from specjax.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOR = "fe_h<-1"
NETWORK = "mlp-lora"
"""The baseline whose predictions are averaged with: a plain network on the spectra, adapted."""

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the plain network that validation stars choose from."""

COLUMNS = (
    Column(name="target", heading="target"),
    Column(name="name", heading="row"),
    Column(name="n_distinct", heading="stars below -1"),
    Column(name="sigma", heading="σ, [Fe/H] < -1", unit="dex"),
    Column(name="r2", heading="R²"),
    Column(name="bias", heading="offset", unit="dex", signed=True),
    Column(name="r2_gain", heading="gain in R² over no remedy", signed=True),
    Column(name="sigma_all", heading="σ, all stars", unit="dex"),
    *BASELINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Settings of `frame.Config`, and those below.

    Attributes:
        configuration: what is mended.
        others: further configurations, for comparison.
        simulated: numbers of simulated metal-poor stars that are added to the training stars.
        surveys: simulated ones, for the prior of the offset.
        stars: of each of them.
    """

    targets: tuple[str, ...] = ("miles-grism", "miles")
    seeds: int = 8
    configuration: str = "lora2"
    others: tuple[str, ...] = ()
    simulated: tuple[int, ...] = (30, 90)
    surveys: int = 12
    stars: int = 300


def get_config() -> Config:
    """Return the default settings."""
    return Config()


def run(config: Config, out: Path, say: Say) -> Results:
    """Adapt in each way, and score the metal-poor stars."""
    if config.label != "fe_h":
        raise ConfigError(f"this experiment is about fe_h, not {config.label}")
    kept = Kept(out, config)
    rows = [row for case in cases.load_cases(config) for row in _rows(config, case, kept, say)]
    table = beside_strongest(rows)
    said = [sentences(config, _of(table, name)) for name in dict.fromkeys(row["target"] for row in table)]
    return Results(
        name="metal_poor",
        title="Metal-poor stars",
        question="How well does adaptation do on metal-poor stars, and what helps?",
        method=(
            f"Test stars below [Fe/H] = -1; means over {config.seeds} seeds, or all seeds pooled where one"
            f" has fewer than ten. Gains are over {config.configuration} as `specjax adapt` trains it, paired"
            " by star. Weights and counts are fixed beforehand or chosen on validation stars."
        ),
        columns=COLUMNS,
        rows=table,
        sentences=[sentence for pair in said for sentence in pair],
        answers={"failure": said[0][0], "mending": said[0][1]},
        draw=lambda figure: draw(figure, table),
    )


def _rows(config: Config, case: Case, kept: Kept, say: Say) -> list[Row]:
    """Return the rows of one target."""
    runner = Runner(case, kept, say)
    zero_shot = Configuration.parse(config.configuration).zero_shot.name
    as_it_is, plain = runner.predictions(zero_shot), runner.predictions(config.configuration)
    others = runner.baselines()
    made = [_row(case, zero_shot, as_it_is, "zero-shot", plain), _row(case, config.configuration, plain)]
    made += [_row(case, name, runner.predictions(name), "adapted", plain) for name in config.others]
    mended = _averages(config, case, plain, others)
    prior = kept.arrays(f"{case.name}/prior", lambda: _prior(config, case, zero_shot, say))
    offset = _with_offset(OffsetPrior(prior["mean"], prior["covariance"]), case, as_it_is)
    mended[f"{zero_shot}, offset with prior"] = offset
    mended |= _small_heads(case, zero_shot, as_it_is)
    for count in config.simulated:
        name = f"{config.configuration}, {count} simulated stars"
        mended[name] = _with_simulated(config, case, count, kept, say)
    made += [_row(case, name, values, "adapted", plain) for name, values in mended.items()]
    stratified = stratified_case(case)
    again = Runner(stratified, kept, say, f"{case.name}/stratified").predictions(config.configuration)
    made.append(_row(stratified, f"{config.configuration}, stratified splits", again))
    return made + [_row(case, name, values, "baseline", plain) for name, values in others.items()]


def _row(
    case: Case,
    name: str,
    predictions: FloatArray,
    kind: Kind = "adapted",
    reference: FloatArray | None = None,
) -> Row:
    """Score the metal-poor stars, and the scatter of all."""
    row = case.score(name, predictions, kind=kind, reference=reference, subset=POOR)
    everything = case.score(name, predictions, kind=kind)
    return row | {f"sigma_all{end}": everything[f"sigma{end}"] for end in ("", "_lo", "_hi")}


def _averages(
    config: Config, case: Case, adapted: FloatArray, others: Mapping[str, FloatArray]
) -> dict[str, FloatArray]:
    """Return the means of an adapted model and the plain network: of equal weight, and as validated."""
    if NETWORK not in others:
        return {}
    network, name = others[NETWORK], config.configuration
    weight = validated_weight(case.target.truth, adapted, network, case.splits.validate)[:, None]
    return {
        f"mean of {name} and plain network": 0.5 * (adapted + network),
        f"{name} and plain network, validated": (1 - weight) * adapted + weight * network,
    }


def validated_weight(
    truth: FloatArray, first: FloatArray, second: FloatArray, validate: IntArray
) -> FloatArray:
    """Return the weight (S,) of the second predictions with the smallest robust loss on validation stars.

    Args:
        truth: (n,) labels.
        first: (S, n) predictions.
        second: (S, n) predictions.
        validate: (S, b) rows of the validation stars; without any, the weight is one half.
    """
    if not validate.shape[1]:
        return np.full(len(validate), 0.5)
    a, b = (np.take_along_axis(values, validate, axis=1) for values in (first, second))
    loss = [pseudo_huber((1 - w) * a + w * b - truth[validate]).mean(axis=1) for w in WEIGHTS]
    return np.asarray(np.array(WEIGHTS)[np.argmin(loss, axis=0)])


def stratified_case(case: Case) -> Case:
    """Return the case with splits whose parts, of the same sizes, have the same distribution of [Fe/H]."""
    sizes = {"train": case.splits.train.shape[1], "validate": case.splits.validate.shape[1]}
    target = case.target
    splits = draw_splits(len(target.labelled), seeds=len(case.splits), stratify=target.fe_h, **sizes)
    return dataclasses.replace(case, splits=splits)


def _with_offset(prior: OffsetPrior, case: Case, as_it_is: FloatArray) -> FloatArray:
    """Correct the model as it is by the training stars of each seed: (S, n)."""
    truth, found = case.target.truth, []
    for predicted, train in zip(as_it_is, case.splits.train, strict=True):
        found.append(prior.corrected(predicted[train], truth[train], predicted))
    return np.stack(found)


def _small_heads(case: Case, zero_shot: str, as_it_is: FloatArray) -> dict[str, FloatArray]:
    """Correct the model as it is by small heads on its features, without and with a scatter of their own."""
    head = zero_shot.removeprefix("zero-shot-")
    inputs = components(case.model.features(case.target.labelled, head))
    made: dict[str, FloatArray] = {}
    for name, own_scatter in (("correction", False), ("correction with its own scatter", True)):
        made[f"{zero_shot}, {name}"] = np.stack([
            predicted
            + fit_correction(
                inputs[train], (case.target.truth - predicted)[train], inputs, own_scatter=own_scatter
            )[0]
            for predicted, train in zip(as_it_is, case.splits.train, strict=True)
        ])  # fmt: skip
    return made


def random_flaws(rng: np.random.Generator, fwhm: float | None, seed: int) -> Flaws:
    """Draw the flaws of an instrument; the resolution is given."""
    return Flaws(
        fwhm=fwhm,
        throughput=rng.uniform(0.0, 0.1),
        scattered_light=rng.uniform(0.0, 0.2),
        wavelength_offset=rng.uniform(-1.0, 1.0),
        snr=float(np.exp(rng.uniform(np.log(20.0), np.log(100.0)))),
        seed=seed,
    )


@functools.lru_cache(maxsize=1)
def _grid() -> tuple[Spectra, FloatArray]:
    """Return the spectra of the emulator's grid at the resolution of MILES, and their [Fe/H]."""
    library = mastar.read(fetch_stellar_libraries() / "mastarhc_v2")
    emulator = shipped()
    stars = simulated.continued(simulated.simulate(emulator), library)
    return stars, np.asarray(emulator.labels[:, LABELS.index("fe_h")])


def simulated_stars(fwhm: float | None, count: int, seed: int, *, poor: bool) -> tuple[Spectra, FloatArray]:
    """Observe simulated stars with an instrument that is drawn at random.

    Args:
        fwhm: resolution of the target, which preprocessing is told, as for its spectra; None or up to that of
            MILES leaves the latter.
        count: stars at most; those that cannot be used are left out.
        seed: of stars and instrument.
        poor: only stars below [Fe/H] = -1.

    Returns:
        Spectra on the LAMOST grid, and their [Fe/H].
    """
    stars, fe_h = _grid()
    rng = np.random.default_rng([seed, 2])
    rows = rng.permutation(np.flatnonzero(fe_h < -1) if poor else np.arange(len(stars)))[:count]
    coarse = fwhm if fwhm is not None and fwhm > MILES_FWHM else None
    flaws = random_flaws(rng, coarse, seed)
    seen = spoil(stars[rows], flaws, fwhm_from=MILES_FWHM)
    lamost = to_lamost(seen.with_meta(redshift=np.zeros(len(rows))), fwhm=coarse or MILES_FWHM)
    good = lamost.meta["flag"] == Flag.GOOD
    return lamost[good], fe_h[rows][good]


def _prior(config: Config, case: Case, zero_shot: str, say: Say) -> dict[str, AnyArray]:
    """Fit the prior of the offset to predictions for simulated surveys."""
    say(f"{case.name}: predictions for {config.surveys} simulated surveys")
    head, surveys = zero_shot.removeprefix("zero-shot-"), []
    for seed in range(config.surveys):
        lamost, fe_h = simulated_stars(case.target.fwhm, config.stars, seed, poor=False)
        predicted = case.model.predict(lamost, head)["fe_h"].astype(np.float64)
        surveys.append((predicted, fe_h))
    return OffsetPrior.of(surveys)._asdict()


def _with_simulated(config: Config, case: Case, count: int, kept: Kept, say: Say) -> FloatArray:
    """Adapt with simulated metal-poor stars among the training stars: (S, n)."""
    key = f"{case.name}/simulated-{count}"

    def make() -> AnyArray:
        lamost, fe_h = simulated_stars(case.target.fwhm, count, 1000, poor=True)
        mixed = mixed_case(case, lamost, fe_h)
        predicted = Runner(mixed, kept, say, key).run(config.configuration).predictions
        return np.asarray(predicted[:, : len(case.target.labelled)])

    return kept.array(key, make)


def mixed_case(case: Case, lamost: Spectra, fe_h: FloatArray) -> Case:
    """Add stars to the training stars of every seed; they follow the labelled stars of the target.

    Args:
        case: model, target and splits.
        lamost: k spectra on the grid of the target's.
        fe_h: (k,) their labels.
    """
    target, splits = case.target, case.splits
    first = target.labelled
    # Without uncertainties of the target's spectra, those of the others are none either.
    ivar = lamost.ivar if first.has_ivar else np.where(lamost.mask, 0.0, 1.0)
    labelled = first.derive(
        flux=np.concatenate([first.flux, lamost.flux]),
        ivar=np.concatenate([first.ivar, ivar]),
        mask=np.concatenate([first.mask, lamost.mask]),
        id=np.concatenate([first.id, lamost.id]),
        meta={},
    )
    n, added = len(target.labelled), np.tile(np.arange(len(lamost)), (len(splits), 1))
    return dataclasses.replace(
        case,
        target=dataclasses.replace(
            target,
            labelled=labelled,
            truth=np.concatenate([target.truth, fe_h]),
            fe_h=np.concatenate([target.fe_h, fe_h]),
        ),
        splits=Splits(
            train=np.concatenate([splits.train, n + added], axis=1),
            validate=splits.validate,
            test=splits.test,
            seeds=splits.seeds,
        ),
    )


def sentences(config: Config, rows: Sequence[Row]) -> tuple[str, str]:
    """Say how adaptation does on metal-poor stars of one target, and what helps."""
    by = {row["name"]: row for row in rows}
    plain = by[config.configuration]
    zero = next(row for row in rows if row["kind"] == "zero-shot")
    mended = [
        row for row in rows if (row["kind"] == "adapted" and "," in row["name"]) or "mean of" in row["name"]
    ]
    best = max(mended, key=lambda row: float(row["r2"]))
    strongest = by.get(plain["baseline"])
    beside = (
        f" ({strongest['name']}, the baseline of smallest scatter: {figure_of(strongest)}, R²"
        f" {figure_of(strongest, 'r2', '')})"
        if strongest
        else ""
    )
    gain = (
        f", a gain of {figure_of(best, 'r2_gain', '', signed=True)}" if np.isfinite(best["r2_gain"]) else ""
    )
    return (
        f"Below [Fe/H] = -1 on {plain['target']}, {config.configuration} has σ {figure_of(plain)} and R²"
        f" {figure_of(plain, 'r2', '')}, the model as it is {figure_of(zero)} and"
        f" {figure_of(zero, 'r2', '')}; over all stars, σ is {figure_of(plain, 'sigma_all')} and"
        f" {figure_of(zero, 'sigma_all')}.",
        f'Of {len(mended)} remedies, "{best["name"]}" has the largest R² there,'
        f" {figure_of(best, 'r2', '')}{gain}, with σ {figure_of(best)}{beside}.",
    )


def draw(figure: "Figure", rows: Sequence[Row]) -> None:
    """Draw the scatter of the metal-poor stars of the first target."""
    own = _of(rows, rows[0]["target"])
    figure.set_size_inches(figures.WIDTH, 1.0 + 0.18 * len(own))
    axis = figure.subplots()
    figures.draw_bars(axis, own, [row["name"] for row in own], "r2", lowest=-2.5)
    axis.set_xlabel("R², [Fe/H] < -1")
    axis.set_title(rows[0]["target"], fontsize=8)


def _of(rows: Sequence[Row], target: str) -> list[Row]:
    return [row for row in rows if row["target"] == target]


if __name__ == "__main__":
    frame.command("metal_poor", get_config(), run, __doc__)
