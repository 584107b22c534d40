"""A study: configurations on targets, into a folder with table, predictions, plots and adapters.

`specjax adapt` runs it on a user's survey and `experiments/main_table.py` on the stellar libraries.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from specjax.adapt.adaptation import Adaptation, AdaptConfig, Adapter
from specjax.adapt.configuration import CONFIGURATIONS, zero_shot_of
from specjax.adapt.target import Splits, Target, draw_splits
from specjax.atomic import atomic_folder
from specjax.checkpoints import save_adapter
from specjax.errors import ModelError
from specjax.foundation import Foundation
from specjax.progress import Say
from specjax.report import metrics, plots, results
from specjax.typing import FloatArray, IntArray

# (target, splits) -> {baseline: predictions (S, n)}
Baselines = Callable[[Target, Splits], Mapping[str, FloatArray]]

TITLES = {"fe_h": ("[Fe/H]", "dex"), "teff": ("Teff", "K"), "logg": ("log g", "dex")}


def run_study(
    model: Foundation,
    targets: Sequence[Target],
    config: AdaptConfig,
    out: Path,
    *,
    configurations: Sequence[str] = CONFIGURATIONS,
    baselines: Baselines | None = None,
    floor: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
    splits: Mapping[str, Splits] | None = None,
    say: Say = print,
) -> list[results.Row]:
    """Adapt to each target with each configuration, score all on the same splits, and write the run folder.

    Zero-shot rows that a gain needs are added. The folder holds config.json, table.json, predictions.ecsv
    (one row a target, configuration, seed and test star), predictions_TARGET.png, sigma.png, and
    adapters/TARGET/CONFIGURATION. It appears whole or not at all.

    Args:
        out: the folder; what a former run left there is replaced.
        baselines: more predictions for the table, made from the same splits, in a thread beside the stages.
        floor: by target, a scatter to draw as a line (of the literature's own labels).
        record: what else belongs into config.json.
        splits: by target, the splits of `config.seeds` seeds; drawn by chance for the others.

    Raises:
        SpecjaxError: whatever a target, the model or the folder has wrong.
    """
    names = _with_zero_shot(configurations)
    if any(results.configuration_kind(name) == "adapted" for name in names):
        _digest(model)  # not after an hour of training
    unit = TITLES.get(targets[0].label, (targets[0].label, ""))[1]
    rows: list[results.Row] = []
    columns: list[dict[str, Any]] = []
    with atomic_folder(out) as folder, ThreadPoolExecutor(1) as beside:
        for target in targets:
            drawn = (splits or {}).get(target.name) or draw_splits(
                len(target.labelled), seeds=config.seeds, train=config.train, validate=config.validate
            )
            more = beside.submit(baselines, target, drawn) if baselines is not None else None
            adapter = Adapter(model, target, drawn, config, say)
            found: dict[str, Adaptation] = {}
            for name in names:
                say(f"{target.name}: {name}")
                found[name] = adapter.run(name)
            predictions = {name: one.predictions for name, one in found.items()}
            if more is not None:
                predictions |= more.result()
            scored = score(target, drawn, predictions)
            rows += scored
            columns.append(_columns(target, drawn, predictions))
            _save_adapters(folder / "adapters" / target.name, model, target, config, found, scored)
            _plot_target(folder, target, drawn, found, scored)
        results.write_config(folder, {"adapt": config, "configurations": names, **(record or {})})
        results.write_table(folder, rows)
        results.write_predictions(folder, _joined(columns))
        plots.plot_sigma(folder / "sigma.png", rows, unit=unit, floor=floor)
    return rows


def score(target: Target, splits: Splits, predictions: Mapping[str, FloatArray]) -> list[results.Row]:
    """Score predictions (S, n) on each seed's test stars; gains against zero-shot with the same head."""
    test = {name: _taken(values, splits.test) for name, values in predictions.items()}
    truth, fe_h = target.truth[splits.test], target.fe_h[splits.test]
    rows = []
    for name, values in test.items():
        adapted = results.configuration_kind(name) == "adapted"
        reference = test[zero_shot_of(name)] if adapted else None
        scores = metrics.summarise(
            truth, values, fe_h=fe_h, reference=reference, stars=target.labelled.id[splits.test]
        )
        rows += results.table_rows(target.name, name, scores)
    return rows


def _with_zero_shot(configurations: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys(configurations))
    needed = [zero_shot_of(name) for name in wanted]
    return [name for name in dict.fromkeys([*needed, *wanted])] if set(needed) - set(wanted) else wanted


def _taken(values: FloatArray, rows: IntArray) -> FloatArray:
    return np.take_along_axis(np.broadcast_to(values, (len(rows), values.shape[-1])), rows, axis=1)


def _columns(target: Target, splits: Splits, predictions: Mapping[str, FloatArray]) -> dict[str, Any]:
    seeds, stars = splits.test.shape
    count = seeds * stars
    repeat = len(predictions)
    return {
        "target": np.full(repeat * count, target.name),
        "configuration": np.repeat(list(predictions), count),
        "seed": np.tile(np.repeat(np.arange(seeds), stars), repeat),
        "id": np.tile(target.labelled.id[splits.test].ravel(), repeat),
        target.label: np.tile(target.truth[splits.test].ravel(), repeat),
        f"{target.label}_predicted": np.concatenate(
            [_taken(values, splits.test).ravel() for values in predictions.values()]
        ),
    }


def _joined(columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}


def _save_adapters(
    folder: Path,
    model: Foundation,
    target: Target,
    config: AdaptConfig,
    found: Mapping[str, Adaptation],
    rows: Sequence[results.Row],
) -> None:
    """Write the factors of all seeds of each adapted configuration, with the scatter that they reached."""
    sigma = {row["configuration"]: row["sigma"] for row in rows if row["subset"] == "all"}
    for name, adaptation in found.items():
        description = {
            "configuration": name,
            "label": target.label,
            "target": target.name,
            "fwhm": target.fwhm,
            "preparation": dict(target.preparation),
            "seeds": config.seeds,
            "sigma": sigma[name],
            "lora": {
                group: dataclasses.asdict(lora) for group, lora in model.config.loras.items() if group in name
            },
            "chosen": results.plain(adaptation.chosen),
        }
        if adaptation.adapters:
            save_adapter(
                folder / name,
                config=description,
                arrays=jax.tree.map(np.asarray, adaptation.adapters),
                base=_digest(model),
            )


def _digest(model: Foundation) -> str:
    if model.digest is None:
        raise ModelError("adapters can be saved only for a model that was loaded from a folder")
    return model.digest


def _plot_target(
    folder: Path, target: Target, splits: Splits, found: Mapping[str, Adaptation], rows: Sequence[results.Row]
) -> None:
    stars, truth = target.labelled.id[splits.test], target.truth[splits.test]
    panels = {
        name: plots.per_star(stars, truth, _taken(one.predictions, splits.test))
        for name, one in found.items()
    }
    label, unit = TITLES.get(target.label, (target.label, ""))
    plots.plot_predictions(
        folder / f"predictions_{target.name}.png",
        panels,
        rows=rows,
        title=target.name,
        label=label,
        unit=unit,
    )
