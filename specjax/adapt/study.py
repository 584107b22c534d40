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
from specjax.adapt.checks import ONLY_FACTORS, check_label, check_model, check_settings, check_truth
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import count_seeds
from specjax.adapt.fusing import FUSED, fuse_seeds, mean_of_seeds, unseen_split
from specjax.adapt.inputs import NO_PAIRS, TargetInputs, has_pairs, inputs_of_labels
from specjax.adapt.parts import Parts, record_of
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.shares import SharedAdaptation
from specjax.adapt.splits import Splits, default_sizes, describe_sizes, draw_splits
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
from specjax.errors import DataError, ModelError
from specjax.flags import count_flags
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.report import metrics, plots, provenance, results
from specjax.report.calibration_plot import plot_calibration
from specjax.typing import FloatArray, IntArray
from specjax.units import symbol_and_unit

_KEYS = ("target", "configuration", "seed", "id")  # of a row of predictions.ecsv

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
    files: Callable[[AdaptConfig], Mapping[str, str]] | None = None,
    say: Say = silent,
) -> list[results.Row]:
    """Adapt to each target with each configuration, score all on the same splits, and write the run folder.

    Zero-shot rows that gains are measured against are added. The folder holds config.json, table.json,
    predictions.ecsv (one row per target, configuration, seed and test star, with intervals; fused adapters
    and means over seeds have the seed 0), calibration.json and .ecsv (coverage of these intervals),
    predictions_TARGET.png, calibration_TARGET.png, sigma.png, and adapters/TARGET/CONFIGURATION; if there are
    several labels, predictions_TARGET_LABEL.png, calibration_TARGET_LABEL.png, sigma_LABEL.png and
    adapters/TARGET/CONFIGURATION/LABEL. Each figure is there as .pdf, too. The folder appears whole or not at
    all. Until then finished configurations are kept beside it, and the same study resumes from them (see
    `parts.Parts`).

    In a distributed session the processes share the seeds. Process 0 alone writes the folder, and the others
    return no rows.

    Args:
        model: the model to adapt.
        targets: surveys with a label each. Those of the same name are one survey with several labels, whose
            features are computed once and whose stars are split in the same order.
        config: seeds, splits and stages.
        out: the folder; an earlier run in it is replaced.
        configurations: rows of the table.
        baselines: further predictions for the table, from the same splits, made in a thread of their own.
        label_scatter: by target, the scatter between two sets of literature labels, drawn as a line.
        record: further entries of config.json.
        splits: by name of the target, the splits of `config.seeds` seeds, for all of its labels; drawn at
            random for the others. With `config.one_split`, only the first of them is used.
        files: makes further files of the folder, as text by name, from the resolved settings.
        say: receives lines of progress.

    Raises:
        SpecjaxError: an invalid configuration, target, model or folder, or an unfinished study in the same
            folder that differs.
    """
    check_settings(configurations, config)
    wanted = _with_zero_shot(configurations)
    check_model(model, wanted, config)
    for target in targets:
        check_label(model, target.label)
        check_truth(model, target)
        if any(config.needs_xp(configuration) for configuration in wanted) and not has_pairs(target):
            raise DataError(f"{target.name}: {NO_PAIRS}")
    for configuration in wanted:
        if config.fuse and configuration.is_adapted and not configuration.can_be_fused:
            say(f"{configuration.name} is not fused: {ONLY_FACTORS}")
    if any(configuration.is_adapted for configuration in wanted):
        _digest(model)  # fail now, not after the training
    if distributed.is_main():
        check_folder(out)
    surveys = [[t for t in targets if t.name == name] for name in dict.fromkeys(t.name for t in targets)]
    targets = [target for survey in surveys for target in survey]
    drawn = [own for survey in surveys for own in _splits_of(survey, config, splits or {})]
    config = _resolved(config, drawn)
    several = len({target.label for target in targets}) > 1
    for target, own in zip(targets, drawn, strict=True):
        say(f"{target.name}{f' with {target.label}' if several else ''}: {describe_sizes(own)}")
    parts = _begin(model, targets, drawn, config, wanted, out)
    adapted: list[_Adapted] = []
    for survey in surveys:
        for target, inputs in zip(survey, inputs_of_labels(model, survey), strict=True):
            own, section = drawn[len(adapted)], target.label if several else ""
            adapted.append(_adapt(model, target, own, config, wanted, parts, baselines, say, inputs, section))
    distributed.finish()
    if not distributed.is_main():
        return []
    names = [configuration.name for configuration in wanted]
    outside: dict[str, dict[str, str]] = {}
    for one in adapted:
        outside.setdefault(one.target.name, {}).update(one.outside)
    sizes = [{"target": one.target.name, "label": one.target.label, **_sizes(one.splits)} for one in adapted]
    about = {"adapt": config, "configurations": names, "splits": sizes, "outside_training": outside}
    about |= {**(record or {}), "made": provenance.made()}
    made = {} if files is None else files(config)
    rows = _write(model, adapted, config, out, about, label_scatter, made, say)
    parts.remove()
    return results.Rows(rows)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Adapted:
    """What all configurations reach on one target.

    Attributes:
        target: the target.
        splits: the splits of all seeds.
        results: of the configurations.
        others: predictions of the baselines, by name.
        outside: flags of labelled stars that the model was not trained for, by id.
        section: the label if the study has several, which is then part of the names of files; else "".
    """

    target: Target
    splits: Splits
    results: list[AdaptationResult]
    others: Mapping[str, FloatArray]
    outside: Mapping[str, str]
    section: str = ""


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
    inputs: TargetInputs,
    section: str,
) -> _Adapted:
    """Run all configurations on a target, and in process 0 the baselines beside them."""
    with ThreadPoolExecutor(1) as thread:
        if baselines is not None and distributed.is_main():
            pending = thread.submit(baselines, target, splits)
        else:
            pending = None
        name = f"{target.name}/{section}" if section else target.name
        adaptation = SharedAdaptation(model, target, splits, config, parts, say, inputs, name)
        outside = adaptation.inputs.outside_training()
        _warn_of_outside(target, outside, say)
        adapted: list[AdaptationResult] = []
        for configuration in configurations:
            say(f"{name}: {configuration.name}")
            adapted.append(adaptation.run(configuration))
        others = {} if pending is None else pending.result()
    return _Adapted(
        target=target, splits=splits, results=adapted, others=others, outside=outside, section=section
    )


def _write(
    model: Foundation,
    adapted: Sequence[_Adapted],
    config: AdaptConfig,
    out: Path,
    about: Mapping[str, Any],
    label_scatter: Mapping[str, float] | None,
    files: Mapping[str, str],
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
            _save_adapters(adapters, model, target, saved, calibrations, scored, one.section)
            _plot_target(folder, one, scored, own)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        results.write_config(folder, about)
        results.write_table(folder, rows)
        results.write_calibration(folder, covered)
        results.write_predictions(folder, _joined(columns))
        for label, section in {one.target.label: one.section for one in adapted}.items():
            mine = [row for row in rows if row["label"] == label]
            path = folder / _plot_name("sigma", section)
            plots.plot_sigma(path, mine, unit=symbol_and_unit(label)[1], label_scatter=label_scatter)
    return rows


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join columns of predictions: rows of the same target, configuration, seed and star become one row.

    A label that a row does not have, as stars without it are not tested with it, is NaN.
    """
    if len({tuple(part) for part in parts}) == 1:  # one label: no row occurs twice
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    place: dict[tuple[Any, ...], int] = {}
    rows = [
        np.array(
            [place.setdefault(key, len(place)) for key in zip(*(part[name] for name in _KEYS), strict=True)]
        )
        for part in parts
    ]
    columns = {name: np.array([key[index] for key in place]) for index, name in enumerate(_KEYS)}
    for part, at in zip(parts, rows, strict=True):
        for name in (name for name in part if name not in _KEYS):
            columns.setdefault(name, np.full(len(place), np.nan))[at] = part[name]
    return columns


def _plot_name(name: str, section: str) -> str:
    return f"{name}_{section}.png" if section else f"{name}.png"


def _sizes(splits: Splits) -> dict[str, int]:
    return {name: getattr(splits, name).shape[1] for name in ("train", "validate", "test")}


def _resolved(config: AdaptConfig, drawn: Sequence[Splits]) -> AdaptConfig:
    """Return the settings with the numbers of stars, where they are the same for all targets and labels."""
    sizes = [_sizes(splits) for splits in drawn]
    same: dict[str, Any] = {
        name: sizes[0][name] for name in ("train", "validate") if len({one[name] for one in sizes}) == 1
    }
    return dataclasses.replace(config, **same)


def _splits_of(survey: Sequence[Target], config: AdaptConfig, splits: Mapping[str, Splits]) -> list[Splits]:
    """Return the splits of all seeds for each label of a survey: those that are given, or drawn at random.

    The stars of all labels are drawn in one order, so that a star has the same role for all labels, as far as
    their numbers of stars allow.
    """
    names = list(dict.fromkeys(name for target in survey for name in target.labelled.id.tolist()))
    drawn = []
    for target in survey:
        given = splits.get(target.name)
        if given is None:
            train, validate = default_sizes(len(target.labelled), config.train, config.validate)
            given = draw_splits(
                len(names),
                seeds=1 if config.one_split else config.seeds,
                train=train,
                validate=validate,
                among=np.isin(names, target.labelled.id),
            )
        drawn.append(given.repeated(config.seeds) if config.one_split else given)
    return drawn


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
        kind = _kind(configuration)
        rows += results.table_rows(target.name, configuration.name, scores, kind=kind, label=target.label)
    for name, predictions in (baselines or {}).items():
        scores = _scores(target, splits, predictions)
        rows += results.table_rows(target.name, name, scores, kind="baseline", label=target.label)
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
    section: str,
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
            "wavelength": dict(target.wavelength),
            "preparation": dict(target.preparation),
            "seeds": count_seeds(one.adapters),
            "sigma": sigma.get(name),
            "calibration": None if calibration is None else calibration.to_json(),
            "lora": lora.describe(one.adapters, model.config.loras),
            "chosen": results.plain(one.chosen),
        }
        save_adapter(
            folder / name / section,
            config=description,
            arrays=jax.tree.map(np.asarray, one.adapters),
            base=_digest(model),
        )


def _digest(model: Foundation) -> str:
    if model.digest is None:
        raise ModelError("adapters can be saved only for a model that was loaded from a folder")
    return model.digest


def _plot_target(
    folder: Path, one: _Adapted, rows: Sequence[results.Row], covered: Sequence[results.Row]
) -> None:
    target, splits = one.target, one.splits
    stars, truth = target.labelled.id[splits.test], target.truth[splits.test]
    panels = {
        each.configuration.name: plots.per_star(
            stars, truth, _taken(each.predictions, splits.test), kind=_kind(each.configuration)
        )
        for each in one.results
    }
    label, unit = symbol_and_unit(target.label)
    plots.plot_predictions(
        folder / _plot_name(f"predictions_{target.name}", one.section),
        panels,
        rows=rows,
        title=target.name,
        label=label,
        unit=unit,
    )
    if covered:
        path = folder / _plot_name(f"calibration_{target.name}", one.section)
        plot_calibration(path, covered, title=target.name, unit=unit)
