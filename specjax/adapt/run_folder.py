"""The folder of a run: scores, predictions with intervals, plots and adapters of all configurations."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from specjax import lora
from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import count_seeds
from specjax.adapt.fusing import FUSED, fuse_seeds, mean_of_seeds, unseen_split
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.splits import Splits
from specjax.adapt.target import Target
from specjax.adapt.uncertainties import (
    calibrate_mean,
    calibration_scores,
    few_stars,
    intervals_of_mean,
    intervals_of_seeds,
)
from specjax.atomic import atomic_folder
from specjax.calibration.calibration import SUFFIXES, Calibration, Intervals
from specjax.checkpoints import save_adapter
from specjax.errors import ModelError
from specjax.foundation import Foundation
from specjax.progress import Say
from specjax.report import metrics, plots, results
from specjax.report.calibration_plot import plot_calibration
from specjax.typing import FloatArray
from specjax.units import symbol_and_unit

MOST_LABELLED = 10_000
"""Ids of labelled stars that an adapter records, so that predictions for them are not taken for new ones."""

_KEYS = ("target", "configuration", "seed", "id")  # of a row of predictions.ecsv


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reached:
    """What all configurations reach on one target.

    Attributes:
        target: the target.
        splits: the splits of all seeds.
        results: of the configurations.
        others: predictions of the baselines, by name.
        outside: flags of labelled stars that the model was not trained for, by id.
        doubt: what may be wrong with the labels, see `first_look.compare_labels`; "" if nothing seems to be.
        section: the label if the study has several, which is then part of the names of files; else "".
    """

    target: Target
    splits: Splits
    results: list[AdaptationResult]
    others: Mapping[str, FloatArray]
    outside: Mapping[str, str]
    doubt: str = ""
    section: str = ""


@dataclasses.dataclass(kw_only=True, eq=False)
class _Tables:
    """Rows of table.json and calibration.json, and parts of the columns of predictions.ecsv."""

    rows: list[results.Row] = dataclasses.field(default_factory=list)
    covered: list[results.Row] = dataclasses.field(default_factory=list)
    columns: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, other: Self) -> None:
        """Append the rows and columns of further predictions."""
        self.rows += other.rows
        self.covered += other.covered
        self.columns += other.columns


def write_run(
    model: Foundation,
    adapted: Sequence[Reached],
    config: AdaptConfig,
    out: Path,
    about: Mapping[str, Any],
    label_scatter: Mapping[str, float] | None,
    files: Mapping[str, str],
    say: Say,
) -> list[results.Row]:
    """Score what all targets have reached, and write the run folder, see `study.run_study`.

    Args:
        model: the adapted model.
        adapted: what is reached on each target.
        config: settings of the adaptation.
        out: the folder, which appears whole or not at all.
        about: the contents of config.json.
        label_scatter: by target, the scatter between two sets of literature labels.
        files: further files of the folder, as text by name.
        say: receives lines of progress.

    Returns:
        The rows of table.json.
    """
    tables = _Tables()
    with atomic_folder(out) as folder:
        for one in adapted:
            tables.add(_write_target(folder, model, one, config, say))
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        results.write_config(folder, about)
        results.write_table(folder, tables.rows)
        results.write_calibration(folder, tables.covered)
        results.write_predictions(folder, _joined(tables.columns))
        _plot_sigmas(folder, adapted, tables.rows, label_scatter)
    return tables.rows


def _write_target(folder: Path, model: Foundation, one: Reached, config: AdaptConfig, say: Say) -> _Tables:
    """Write the adapters and the plots of one target, and return its part of the tables."""
    fusible = [each for each in one.results if config.fuse and each.configuration.can_be_fused]
    fused = [fuse_seeds(model, one.target, each) for each in fusible]
    intervals = [intervals_of_seeds(one.target, one.splits, each) for each in one.results]
    tables = _of_seeds(one, intervals)
    if fused and (unseen := unseen_split(one.target, one.splits, say)) is not None:
        means = [mean_of_seeds(each) for each in fusible]
        tables.add(
            _of_all_seeds(one, unseen, [each for pair in zip(means, fused, strict=True) for each in pair])
        )
    _save_adapters(folder, model, one, [*one.results, *fused], tables.rows, say)
    _plot_predictions(folder, one, tables.rows, intervals)
    _plot_calibration(folder, one, tables.covered)
    return tables


def _of_seeds(one: Reached, intervals: Sequence[Intervals]) -> _Tables:
    """Return what is written of the predictions of single seeds for their test stars."""
    target, splits = one.target, one.splits
    return _Tables(
        rows=score(target, splits, one.results, one.others),
        covered=calibration_scores(target, splits, one.results, intervals),
        columns=[_columns(target, splits, one.results, one.others, intervals)],
    )


def _of_all_seeds(one: Reached, unseen: Splits, compared: Sequence[AdaptationResult]) -> _Tables:
    """Return what is written of means and fused adapters, for the stars that no seed has seen."""
    target = one.target
    intervals = [intervals_of_mean(target, one.splits, each, unseen.test[0]) for each in compared]
    return _Tables(
        rows=score(target, unseen, compared, references=one.results),
        covered=calibration_scores(target, unseen, compared, intervals),
        columns=[_columns(target, unseen, compared, intervals=intervals)],
    )


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


def _scores(
    target: Target, splits: Splits, predictions: FloatArray, reference: FloatArray | None = None
) -> list[dict[str, Any]]:
    rows = splits.test
    drawn_anew = not splits.all_equal  # what the p value of the gain assumes
    return metrics.summarise(
        target.truth[rows],
        splits.of_test_stars(predictions),
        fe_h=target.fe_h[rows],
        reference=None if reference is None else splits.of_test_stars(reference),
        stars=target.labelled.id[rows],
        n_train=splits.train.shape[1] if drawn_anew else None,
    )


def _kind(configuration: Configuration) -> results.Kind:
    return "adapted" if configuration.is_adapted else "zero-shot"


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
            [splits.of_test_stars(values).ravel() for values in predictions.values()]
        ),
        **_interval_columns(target.label, [*intervals, *[none] * (repeat - len(intervals))]),
    }


def _interval_columns(label: str, intervals: Sequence[Intervals]) -> dict[str, FloatArray]:
    parts = [each.columns(label) for each in intervals]
    return {name: np.concatenate([part[name].ravel() for part in parts]) for name in parts[0]}


def _save_adapters(
    folder: Path,
    model: Foundation,
    one: Reached,
    adapted: Sequence[AdaptationResult],
    rows: Sequence[results.Row],
    say: Say,
) -> None:
    """Write the adapters of all configurations that have any, and say for what the stars are too few."""
    sigma = {row["configuration"]: row["sigma"] for row in rows if row["subset"] == "all"}
    saved = [each for each in adapted if each.adapters]
    calibrations = [calibrate_mean(one.target, one.splits, each) for each in saved]
    for line in few_stars(one.target, calibrations):
        say(line)
    for each, calibration in zip(saved, calibrations, strict=True):
        name = each.configuration.name
        save_adapter(
            folder / "adapters" / one.target.name / name / one.section,
            config=_description(model, one.target, each, calibration, sigma.get(name)),
            arrays=jax.tree.map(np.asarray, each.adapters),
            base=digest_of(model),
        )


def _description(
    model: Foundation,
    target: Target,
    result: AdaptationResult,
    calibration: Calibration | None,
    sigma: float | None,
) -> dict[str, Any]:
    """Return what is stored with the factors of all seeds of a configuration."""
    return {
        "configuration": result.configuration.name.removesuffix(FUSED),
        "label": target.label,
        "target": target.name,
        "fwhm": target.fwhm,
        "wavelength": dict(target.wavelength),
        "preparation": dict(target.preparation),
        "seeds": count_seeds(result.adapters),
        "labelled": target.labelled.id[:MOST_LABELLED].tolist(),
        "sigma": sigma,
        "calibration": None if calibration is None else calibration.to_json(),
        "lora": lora.describe(result.adapters, model.config.loras),
        "chosen": results.plain(result.chosen),
    }


def digest_of(model: Foundation) -> str:
    """Return the digest of a model, which its adapters record.

    Raises:
        ModelError: the model was not loaded from a folder.
    """
    if model.digest is None:
        raise ModelError("adapters can be saved only for a model that was loaded from a folder")
    return model.digest


def _plot_predictions(
    folder: Path, one: Reached, rows: Sequence[results.Row], intervals: Sequence[Intervals]
) -> None:
    """Plot the predictions of single seeds and their intervals, by configuration."""
    target, splits = one.target, one.splits
    stars, truth = target.labelled.id[splits.test], target.truth[splits.test]
    panels = {
        each.configuration.name: plots.per_star(
            stars, truth, splits.of_test_stars(each.predictions), lo=ends.lo, hi=ends.hi
        )
        for each, ends in zip(one.results, intervals, strict=True)
    }
    label, unit = symbol_and_unit(target.label)
    path = folder / _plot_name(f"predictions_{target.name}", one.section)
    plots.plot_predictions(path, panels, rows=rows, title=target.name, label=label, unit=unit)


def _plot_calibration(folder: Path, one: Reached, covered: Sequence[results.Row]) -> None:
    if covered:
        path = folder / _plot_name(f"calibration_{one.target.name}", one.section)
        plot_calibration(path, covered, title=one.target.name, unit=symbol_and_unit(one.target.label)[1])


def _plot_sigmas(
    folder: Path,
    adapted: Sequence[Reached],
    rows: Sequence[results.Row],
    label_scatter: Mapping[str, float] | None,
) -> None:
    """Plot the scatter of all configurations, one figure per label."""
    for label, section in {one.target.label: one.section for one in adapted}.items():
        mine = [row for row in rows if row["label"] == label]
        path = folder / _plot_name("sigma", section)
        plots.plot_sigma(path, mine, unit=symbol_and_unit(label)[1], label_scatter=label_scatter)


def _plot_name(name: str, section: str) -> str:
    return f"{name}_{section}.png" if section else f"{name}.png"
