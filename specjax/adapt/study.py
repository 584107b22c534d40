"""A study: configurations on targets, written to a folder with table, predictions, plots and adapters.

`specjax adapt` runs one on a user's survey, and `experiments/main_table.py` on the stellar libraries.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from specjax import distributed
from specjax.adapt.adaptation import AdaptationResult
from specjax.adapt.checks import ONLY_FACTORS, check_label, check_model, check_settings, check_truth
from specjax.adapt.configuration import Configuration
from specjax.adapt.first_look import compare_labels
from specjax.adapt.inputs import NO_PAIRS, TargetInputs, has_pairs, inputs_of_labels
from specjax.adapt.parts import Parts, record_of
from specjax.adapt.run_folder import Reached, digest_of, write_run
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.shares import SharedAdaptation
from specjax.adapt.splits import Splits, default_sizes, describe_sizes, draw_splits
from specjax.adapt.target import Target
from specjax.atomic import check_folder
from specjax.errors import DataError
from specjax.flags import count_flags
from specjax.foundation import Foundation
from specjax.progress import Say, silent
from specjax.report import provenance, results
from specjax.typing import FloatArray

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
        digest_of(model)  # fail now, not after the training
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
    adapted: list[Reached] = []
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
    about |= {"doubts": [one.doubt for one in adapted if one.doubt]}
    about |= {**(record or {}), "made": provenance.made()}
    made = {} if files is None else files(config)
    rows = write_run(model, adapted, config, out, about, label_scatter, made, say)
    parts.remove()
    return results.Rows(rows)


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
) -> Reached:
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
        doubt = ""
        for configuration in configurations:
            say(f"{name}: {configuration.name}")
            adapted.append(adaptation.run(configuration))
            if not configuration.is_adapted:
                line, about = compare_labels(target, configuration.name, adapted[-1].predictions[0])
                say(line)
                if about and not doubt:
                    say(f"warning: {about}")
                doubt = doubt or about
        others = {} if pending is None else pending.result()
    return Reached(
        target=target,
        splits=splits,
        results=adapted,
        others=others,
        outside=outside,
        doubt=doubt,
        section=section,
    )


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


def _warn_of_outside(target: Target, outside: Mapping[str, str], say: Say) -> None:
    """Report labelled stars that the model was not trained for; they can spoil training and scores."""
    if outside:
        say(
            f"{target.name}: {len(outside)} of {len(target.labelled)} labelled spectra are outside the"
            f" model's training range ({count_flags(outside.values())}); config.json lists them"
        )


def _with_zero_shot(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations once each, preceded by the zero-shot ones that they need."""
    wanted = list(dict.fromkeys(configurations))
    needed = [configuration.zero_shot for configuration in wanted]
    return list(dict.fromkeys([*needed, *wanted])) if set(needed) - set(wanted) else wanted
