"""A study: configurations on targets, written to a folder with table, predictions, plots and adapters.

`specjax adapt` runs one on a user's survey, and `experiments/main_table.py` on the stellar libraries.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specjax import distributed, lora
from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.checks import ONLY_FACTORS, check_model, check_settings
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import count_seeds
from specjax.adapt.fusing import FUSED, fuse_seeds, mean_of_seeds, unseen_split
from specjax.adapt.parts import Parts, record_of
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.shares import SharedAdaptation
from specjax.adapt.splits import Splits, draw_splits
from specjax.adapt.target import Target
from specjax.adapt.uncertainties import (
    calibrate_mean,
    calibration_scores,
    few_stars,
    intervals_of_mean,
    intervals_of_seeds,
)
from specjax.atomic import atomic_folder, check_folder
from specjax.calibration.calibration import SUFFIXES, Calibration, Intervals
from specjax.checkpoints import save_adapter
from specjax.errors import ModelError
from specjax.flags import count_flags
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.report import metrics, plots, results
from specjax.report.calibration_plot import plot_calibration
from specjax.typing import FloatArray, IntArray
from specjax.units import symbol_and_unit

Baselines = Callable[[Target, Splits], Mapping[str, FloatArray]]
"""(target, splits) -> {baseline: predictions (S, n)}."""


def run_study(
    model: Foundation,
    targets: Sequence[Target],
    config: AdaptConfig,
    out: Path,
    *,
    configurations: Sequence[Configuration],
    baselines: Baselines | None = None,
    label_scatter: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
    splits: Mapping[str, Splits] | None = None,
    say: Say = silent,
) -> list[results.Row]:
    """Adapt to each target with each configuration, score all on the same splits, and write the run folder.

    Zero-shot rows that gains are measured against are added. The folder holds config.json, table.json,
    predictions.ecsv (one row per target, configuration, seed and test star, with intervals; fused adapters
    and means over seeds have the seed 0), calibration.json and .ecsv (coverage of these intervals),
    predictions_TARGET.png, calibration_TARGET.png, sigma.png, and adapters/TARGET/CONFIGURATION. It appears
    whole or not at all. Until then finished configurations are kept beside it, and the same study resumes
    from them (see `parts.Parts`).

    In a distributed session the processes share the seeds. Process 0 alone writes the folder, and the others
    return no rows.

    Args:
        model: the model to adapt.
        targets: surveys, all with the same label.
        config: seeds, splits and stages.
        out: the folder; an earlier run in it is replaced.
        configurations: rows of the table.
        baselines: further predictions for the table, from the same splits, made in a thread of their own.
        label_scatter: by target, the scatter between two sets of literature labels, drawn as a line.
        record: further entries of config.json.
        splits: by target, the splits of `config.seeds` seeds; drawn at random for the others. With
            `config.one_split`, only the first of them is used.
        say: receives lines of progress.

    Raises:
        SpecjaxError: an invalid configuration, target, model or folder, or an unfinished study in the same
            folder that differs.
    """
    check_settings(configurations, config)
    wanted = _with_zero_shot(configurations)
    check_model(model, wanted, config)
    for configuration in wanted:
        if config.fuse and configuration.is_adapted and not configuration.can_be_fused:
            say(f"{configuration.name} is not fused: {ONLY_FACTORS}")
    if any(configuration.is_adapted for configuration in wanted):
        _digest(model)  # fail now, not after the training
    if distributed.is_main():
        check_folder(out)
    drawn = [_splits_of(target, config, (splits or {}).get(target.name)) for target in targets]
    parts = _begin(model, targets, drawn, config, wanted, out)
    adapted = [
        _adapt(model, target, own, config, wanted, parts, baselines, say)
        for target, own in zip(targets, drawn, strict=True)
    ]
    distributed.finish()
    if not distributed.is_main():
        return []
    names = [configuration.name for configuration in wanted]
    outside = {one.target.name: one.outside for one in adapted}
    about = {"adapt": config, "configurations": names, "outside_training": outside, **(record or {})}
    rows = _write(model, adapted, config, out, about, label_scatter, say)
    parts.remove()
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Adapted:
    """What all configurations reach on one target.

    Attributes:
        target: the target.
        splits: the splits of all seeds.
        results: of the configurations.
        others: predictions of the baselines, by name.
        outside: flags of labelled stars that the model was not trained for, by id.
    """

    target: Target
    splits: Splits
    results: list[AdaptationResult]
    others: Mapping[str, FloatArray]
    outside: Mapping[str, str]


def _begin(
    model: Foundation,
    targets: Sequence[Target],
    splits: Sequence[Splits],
    config: AdaptConfig,
    configurations: Sequence[Configuration],
    out: Path,
) -> Parts:
    """Check that all processes, and an unfinished run, have the same options and data."""
    record = record_of(model, targets, splits, config)
    names = [configuration.name for configuration in configurations]
    options = {"the list of configurations": names, **record["options"]}
    distributed.agree({"options": options, "contents": record["stamps"]})
    return Parts(out, record)


def _adapt(
    model: Foundation,
    target: Target,
    splits: Splits,
    config: AdaptConfig,
    configurations: Sequence[Configuration],
    parts: Parts,
    baselines: Baselines | None,
    say: Say,
) -> _Adapted:
    """Run all configurations on a target, and in process 0 the baselines beside them."""
    with ThreadPoolExecutor(1) as thread:
        if baselines is not None and distributed.is_main():
            pending = thread.submit(baselines, target, splits)
        else:
            pending = None
        adaptation = SharedAdaptation(model, target, splits, config, parts, say)
        outside = adaptation.inputs.outside_training()
        _warn_of_outside(target, outside, say)
        adapted: list[AdaptationResult] = []
        for configuration in configurations:
            say(f"{target.name}: {configuration.name}")
            adapted.append(adaptation.run(configuration))
        others = {} if pending is None else pending.result()
    return _Adapted(target=target, splits=splits, results=adapted, others=others, outside=outside)


def _write(
    model: Foundation,
    adapted: Sequence[_Adapted],
    config: AdaptConfig,
    out: Path,
    about: Mapping[str, Any],
    label_scatter: Mapping[str, float] | None,
    say: Say,
) -> list[results.Row]:
    """Score what all targets have reached, and write the run folder."""
    rows: list[results.Row] = []
    covered: list[results.Row] = []
    columns: list[dict[str, Any]] = []
    with atomic_folder(out) as folder:
        for one in adapted:
            target, found = one.target, one.results
            scored = score(target, one.splits, found, one.others)
            intervals = [intervals_of_seeds(target, one.splits, each) for each in found]
            columns.append(_columns(target, one.splits, found, one.others, intervals))
            own = calibration_scores(target, one.splits, found, intervals)
            fusible = [each for each in found if config.fuse and each.configuration.can_be_fused]
            fused = [fuse_seeds(model, target, each) for each in fusible]
            if fused and (unseen := unseen_split(target, one.splits, say)) is not None:
                means = [mean_of_seeds(each) for each in fusible]
                compared = [each for pair in zip(means, fused, strict=True) for each in pair]
                scored += score(target, unseen, compared, references=found)
                intervals = [intervals_of_mean(target, one.splits, each, unseen.test[0]) for each in compared]
                columns.append(_columns(target, unseen, compared, intervals=intervals))
                own += calibration_scores(target, unseen, compared, intervals)
            rows += scored
            covered += own
            saved = [each for each in (*found, *fused) if each.adapters]
            calibrations = [calibrate_mean(target, one.splits, each) for each in saved]
            for line in few_stars(target, calibrations):
                say(line)
            adapters = folder / "adapters" / target.name
            _save_adapters(adapters, model, target, saved, calibrations, scored)
            _plot_target(folder, target, one.splits, found, scored, own)
        results.write_config(folder, about)
        results.write_table(folder, rows)
        results.write_calibration(folder, covered)
        joined = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
        results.write_predictions(folder, joined)
        unit = symbol_and_unit(adapted[0].target.label)[1]
        plots.plot_sigma(folder / "sigma.png", rows, unit=unit, label_scatter=label_scatter)
    return rows


def _splits_of(target: Target, config: AdaptConfig, given: Splits | None) -> Splits:
    """Return the splits of all seeds: those that are given, or drawn at random."""
    if given is None:
        given = draw_splits(
            len(target.labelled),
            seeds=1 if config.one_split else config.seeds,
            train=config.train,
            validate=config.validate,
        )
    return given.repeated(config.seeds) if config.one_split else given


def score(
    target: Target,
    splits: Splits,
    adapted: Sequence[AdaptationResult],
    baselines: Mapping[str, FloatArray] | None = None,
    references: Sequence[AdaptationResult] = (),
) -> list[results.Row]:
    """Score predictions on the test stars of each seed; gains are against zero-shot with the same head.

    Args:
        target: the survey, with n labelled stars.
        splits: S splits of these stars.
        adapted: results.
        baselines: further predictions (S, n) by name.
        references: the zero-shot results that gains refer to, if they are not among `adapted`.

    Returns:
        Rows of table.json: one per configuration or baseline and subset.
    """
    by_name = {one.configuration.name: one.predictions for one in adapted}
    by_name |= {one.configuration.name: one.predictions[: len(splits)] for one in references}
    rows = []
    for one in adapted:
        configuration = one.configuration
        reference = by_name[configuration.zero_shot.name] if configuration.is_adapted else None
        scores = _scores(target, splits, one.predictions, reference)
        rows += results.table_rows(target.name, configuration.name, scores, kind=_kind(configuration))
    for name, predictions in (baselines or {}).items():
        scores = _scores(target, splits, predictions)
        rows += results.table_rows(target.name, name, scores, kind="baseline")
    return rows


def _warn_of_outside(target: Target, outside: Mapping[str, str], say: Say) -> None:
    """Report labelled stars that the model was not trained for; they can spoil training and scores."""
    if outside:
        say(
            f"{target.name}: {len(outside)} of {len(target.labelled)} labelled spectra are outside the"
            f" model's training range ({count_flags(outside.values())}); config.json lists them"
        )


def _kind(configuration: Configuration) -> results.Kind:
    return "adapted" if configuration.is_adapted else "zero-shot"


def _scores(
    target: Target, splits: Splits, predictions: FloatArray, reference: FloatArray | None = None
) -> list[dict[str, Any]]:
    rows = splits.test
    drawn_anew = not splits.all_equal  # what the p value of the gain assumes
    return metrics.summarise(
        target.truth[rows],
        _taken(predictions, rows),
        fe_h=target.fe_h[rows],
        reference=None if reference is None else _taken(reference, rows),
        stars=target.labelled.id[rows],
        n_train=splits.train.shape[1] if drawn_anew else None,
    )


def _with_zero_shot(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations once each, preceded by the zero-shot ones that they need."""
    wanted = list(dict.fromkeys(configurations))
    needed = [configuration.zero_shot for configuration in wanted]
    return list(dict.fromkeys([*needed, *wanted])) if set(needed) - set(wanted) else wanted


def _taken(values: FloatArray, rows: IntArray) -> FloatArray:
    return np.take_along_axis(np.broadcast_to(values, (len(rows), values.shape[-1])), rows, axis=1)


def _columns(
    target: Target,
    splits: Splits,
    adapted: Sequence[AdaptationResult],
    baselines: Mapping[str, FloatArray] | None = None,
    intervals: Sequence[Intervals] = (),
) -> dict[str, Any]:
    """Return the columns of predictions.ecsv for the test stars; baselines have no intervals."""
    predictions = {one.configuration.name: one.predictions for one in adapted} | dict(baselines or {})
    seeds, stars = splits.test.shape
    count = seeds * stars
    repeat = len(predictions)
    none = Intervals(*np.full((len(SUFFIXES), *splits.test.shape), np.nan))
    return {
        "target": np.full(repeat * count, target.name),
        "configuration": np.repeat(list(predictions), count),
        "seed": np.tile(np.repeat(np.arange(seeds), stars), repeat),
        "id": np.tile(target.labelled.id[splits.test].ravel(), repeat),
        target.label: np.tile(target.truth[splits.test].ravel(), repeat),
        f"{target.label}_predicted": np.concatenate(
            [_taken(values, splits.test).ravel() for values in predictions.values()]
        ),
        **_interval_columns(target.label, [*intervals, *[none] * (repeat - len(intervals))]),
    }


def _interval_columns(label: str, intervals: Sequence[Intervals]) -> dict[str, FloatArray]:
    parts = [each.columns(label) for each in intervals]
    return {name: np.concatenate([part[name].ravel() for part in parts]) for name in parts[0]}


def _save_adapters(
    folder: Path,
    model: Foundation,
    target: Target,
    adapted: Sequence[AdaptationResult],
    calibrations: Sequence[Calibration | None],
    rows: Sequence[results.Row],
) -> None:
    """Write the factors of all seeds of each configuration, their scatter and the mean's calibration."""
    sigma = {row["configuration"]: row["sigma"] for row in rows if row["subset"] == "all"}
    for one, calibration in zip(adapted, calibrations, strict=True):
        name = one.configuration.name
        description = {
            "configuration": name.removesuffix(FUSED),
            "label": target.label,
            "target": target.name,
            "fwhm": target.fwhm,
            "preparation": dict(target.preparation),
            "seeds": count_seeds(one.adapters),
            "sigma": sigma.get(name),
            "calibration": None if calibration is None else calibration.to_json(),
            "lora": lora.describe(one.adapters, model.config.loras),
            "chosen": results.plain(one.chosen),
        }
        save_adapter(
            folder / name,
            config=description,
            arrays=jax.tree.map(np.asarray, one.adapters),
            base=_digest(model),
        )


def _digest(model: Foundation) -> str:
    if model.digest is None:
        raise ModelError("adapters can be saved only for a model that was loaded from a folder")
    return model.digest


def _plot_target(
    folder: Path,
    target: Target,
    splits: Splits,
    adapted: Sequence[AdaptationResult],
    rows: Sequence[results.Row],
    covered: Sequence[results.Row],
) -> None:
    stars, truth = target.labelled.id[splits.test], target.truth[splits.test]
    panels = {
        one.configuration.name: plots.per_star(
            stars, truth, _taken(one.predictions, splits.test), kind=_kind(one.configuration)
        )
        for one in adapted
    }
    label, unit = symbol_and_unit(target.label)
    plots.plot_predictions(
        folder / f"predictions_{target.name}.png",
        panels,
        rows=rows,
        title=target.name,
        label=label,
        unit=unit,
    )
    if covered:
        plot_calibration(folder / f"calibration_{target.name}.png", covered, title=target.name, unit=unit)
