"""The card of a model, an adapter or a run on the hub: README.md with the header that the hub reads."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from specjax._version import __version__
from specjax.checkpoints import Stored
from specjax.plurals import counted
from specjax.report.calibration import calibration_lines
from specjax.report.markdown import table, yaml_header
from specjax.report.metrics import SUBSETS
from specjax.report.model_facts import model_facts, model_training
from specjax.report.results import HEADINGS, Row, value_and_interval
from specjax.report.shared import Run, Shared
from specjax.units import symbol_and_unit

_TAGS = ("specjax", "astronomy", "stellar-spectra", "spectroscopy", "jax")
_KINDS = {"baseline": ", without the base model", "zero-shot": ", the base model as it is"}
_TASK = {"type": "tabular-regression", "name": "labels of stars from their spectra"}


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the files do not say.

    Attributes:
        repository: "owner/name".
        license: identifier of the hub, such as "mit" or "cc-by-4.0".
        data: sentences on the spectra and labels, such as what to cite.
        base: repository of the base model of an adapter, if it is on the hub.
    """

    repository: str
    license: str
    data: str = ""
    base: str | None = None


def make_card(shared: Shared, options: CardOptions) -> str:
    """Return the text of a card: what it is, how to load it, which stars, scores and licence."""
    body = _model_body(shared, options) if shared.model is not None else _adapters_body(shared, options)
    return (
        f"---\n{yaml_header(_header(shared, options))}---\n\n"
        + "\n\n".join(part for part in body if part)
        + "\n"
    )


def _header(shared: Shared, options: CardOptions) -> dict[str, Any]:
    """Return the metadata that the hub reads."""
    kind = "foundation-model" if shared.model is not None else "lora"
    header: dict[str, Any] = {
        "license": options.license,
        "library_name": "specjax",
        "tags": [*_TAGS, kind],
    }
    if options.base is not None:
        header |= {"base_model": options.base, "base_model_relation": "adapter"}
    results = [
        _result(row)
        for stored in shared.adapters.values()
        if shared.run is not None
        for row in _own_rows(shared.run, stored.config)
        if row["subset"] == SUBSETS[0] and math.isfinite(row["sigma"])
    ]
    if results:
        header["model-index"] = [{"name": options.repository.rpartition("/")[2], "results": results}]
    return header


def _result(row: Row) -> dict[str, Any]:
    """Return one entry of the hub's index of results."""
    label = row.get("label", "fe_h")
    unit = symbol_and_unit(label)[1]
    name = f"scatter of {label} in {unit or 'its unit'}, {row['configuration']}"
    interval = f"95% interval over stars {row['sigma_lo']:.4g} to {row['sigma_hi']:.4g}"
    metrics = [
        {"type": "robust_sigma", "name": f"{name}, {interval}", "value": float(f"{row['sigma']:.4g}")},
        {"type": "r_squared", "name": f"R2 of {label}", "value": float(f"{row['r2']:.4g}")},
    ]
    dataset = {"type": str(row["target"]), "name": f"{row['target']}, stars that were not trained on"}
    return {"task": _TASK, "dataset": dataset, "metrics": metrics}


def _own_rows(run: Run, config: Mapping[str, Any]) -> list[Row]:
    """Return the rows of the configuration of an adapter; those of a fused one are named so."""
    names = (config.get("configuration"), f"{config.get('configuration')}-fused")
    wanted = names[1] if config.get("seeds") == 1 and _has(run, config, names[1]) else names[0]
    return [row for row in run.rows_of(config) if row["configuration"] == wanted]


def _has(run: Run, config: Mapping[str, Any], name: str) -> bool:
    return any(row["configuration"] == name for row in run.rows_of(config))


def _model_body(shared: Shared, options: CardOptions) -> list[str]:
    stored = shared.model
    assert stored is not None
    load = f'"hf://{options.repository}"'
    return [
        f"# {options.repository.rpartition('/')[2]}",
        "A model of stellar spectra for specjax, which adapts it to a"
        " survey with about a hundred labelled stars.",
        "## How to load it",
        f"```python\nimport specjax\n\nmodel = specjax.load({load})\nvectors = model.embed(flux)  # (n, 1462)"
        " continuum-normalised flux on the LAMOST grid\n```",
        f"```sh\nspecjax adapt --model {load[1:-1]} --spectra FOLDER --labels TABLE --out RUN\n```",
        "`pip install 'specjax[hub]'` is needed. `@COMMIT` after the name loads one version for good.",
        "## What it is",
        model_facts(stored),
        model_training(stored),
        *_closing(options),
    ]


def _adapters_body(shared: Shared, options: CardOptions) -> list[str]:
    """Return the parts of the card of one adapter or of all those of a run."""
    configs = {folder: stored.config for folder, stored in shared.adapters.items()}
    bases = {str(stored.base) for stored in shared.adapters.values()}
    labels = ", ".join(dict.fromkeys(str(config.get("label")) for config in configs.values()))
    targets = ", ".join(dict.fromkeys(str(config.get("target")) for config in configs.values()))
    return [
        f"# {options.repository.rpartition('/')[2]}",
        f"{'Adapters' if len(configs) > 1 else 'An adapter'} for specjax:"
        f" a foundation model of stellar spectra predicts {labels} from spectra of {targets}.",
        "## How to use it",
        _usage(shared, options, bases),
        "## What it is",
        _adapter_table(shared),
        _base_line(bases, options),
        "## Data",
        *_data(shared, options),
        *_scores(shared),
        *_closing(options),
    ]


def _usage(shared: Shared, options: CardOptions, bases: Iterable[str]) -> str:
    """Return the commands that predict with the adapters."""
    base = f"hf://{options.base}" if options.base else next(iter(map(_shipped, bases)), None) or "MODEL"
    address = f"hf://{options.repository}"
    folders = list(shared.adapters)
    place = f"{address}/{folders[0]}" if folders[0] else address
    lines = [f"specjax predict --model {base} --adapter {place} SPECTRA -o predicted.fits"]
    lines += ["# or another of the folders below"] if len(folders) > 1 else []
    return "\n".join(["```sh", "pip install 'specjax[hub]'", *lines, "```"])


def _adapter_table(shared: Shared) -> str:
    heading = ("folder", "label", "survey", "configuration", "seeds", "ranks", "digest")
    return table(heading, [_adapter_row(name, stored) for name, stored in shared.adapters.items()])


def _adapter_row(name: str, stored: Stored) -> tuple[str, ...]:
    config = stored.config
    label = str(config.get("label"))
    unit = symbol_and_unit(label)[1]
    return (
        name or "(top)",
        f"{label} ({unit})" if unit else label,
        str(config.get("target")),
        str(config.get("configuration")),
        str(config.get("seeds")),
        _ranks(config.get("lora", {})),
        f"`{stored.digest[:12]}`",
    )


def _ranks(groups: Mapping[str, Any]) -> str:
    """Return "lora1 4, lora2 8": the ranks of each group of factors."""
    found = {name: sorted(set(group.get("ranks", {}).values())) for name, group in groups.items()}
    return ", ".join(f"{name} {'/'.join(map(str, ranks))}" for name, ranks in found.items()) or "-"


def _base_line(bases: Iterable[str], options: CardOptions) -> str:
    lines = []
    for digest in sorted(bases):
        name = _shipped(digest)
        where = f"`{name}`, which ships with specjax" if name else "not one that ships with specjax"
        if options.base:
            where = f"[{options.base}](https://huggingface.co/{options.base})"
        lines.append(f"Base model: {where}; digest `{digest}`. Another model is refused.")
    return "\n".join(lines)


def _shipped(digest: str) -> str | None:
    """Return the name of the model that ships with specjax and has this digest."""
    from specjax.foundation.model import SHIPPED, shipped_folder

    for name in SHIPPED:
        manifest = json.loads((shipped_folder(name) / "manifest.json").read_text())
        if manifest["digest"] == digest:
            return name
    return None


def _data(shared: Shared, options: CardOptions) -> list[str]:
    """Return the paragraphs on spectra, labels and stars."""
    lines = [options.data]
    run = shared.run
    if run is None:
        return [*lines, "The run that made this adapter is not known, and neither are its stars and scores."]
    names = [PurePath(str(run.config[key])).name for key in ("spectra", "labels") if run.config.get(key)]
    if names:
        lines.append("Files: " + ", ".join(f"`{name}`" for name in names) + ".")
    adapted = {(one.config.get("target"), one.config.get("label")) for one in shared.adapters.values()}
    lines += [_stars_line(run, *key) for key in sorted(run.stars) if key in adapted]
    outside = sum(len(flags) for flags in run.config.get("outside_training", {}).values())
    refused = len(run.config.get("refused", {}))
    if outside or refused:
        lines.append(
            f"{refused} spectra were flagged and not used; {outside} labelled ones are outside the training"
            " range of the base model."
        )
    return lines


def _stars_line(run: Run, target: str, label: str) -> str:
    """Say how many stars a target has, and how many of them each seed tests."""
    stars, unit = run.stars[target, label], symbol_and_unit(label)[1]
    span = f"{label} from {_number(stars.low)} to {_number(stars.high)} {unit}".rstrip()
    line = f"{target}: {stars.count} stars with {span}."
    for row in run.rows_of({"target": target, "label": label}):
        if row["subset"] == SUBSETS[0]:
            return (
                f"{line} Each of {row['n_seeds']} random splits tests {row['n_stars']:g} of them; the others"
                " are for training and validation."
            )
    return line


def _scores(shared: Shared) -> list[str]:
    """Return the tables of scores, one per target and label."""
    run = shared.run
    if run is None:
        return []
    parts = ["## Scores on test stars"]
    done = set()
    for stored in shared.adapters.values():
        key = (stored.config.get("target"), stored.config.get("label"))
        rows = run.rows_of(stored.config)
        if key in done or not rows:
            continue
        done.add(key)
        parts += score_tables(rows, str(key[0]), str(key[1]))
        parts += ["- " + line for line in calibration_lines(rows, run.calibration_of(stored.config))]
    return parts if len(parts) > 1 else []


def score_tables(rows: Sequence[Row], target: str, label: str) -> list[str]:
    """Return a table of scores with 95% intervals, and what its columns mean."""
    symbol, unit = symbol_and_unit(label)
    first = next(row for row in rows if row["subset"] == SUBSETS[0])
    lines = []
    for name in dict.fromkeys(row["configuration"] for row in rows):
        mine = {row["subset"]: row for row in rows if row["configuration"] == name}
        every, poor = (mine.get(subset, {}) for subset in (SUBSETS[0], SUBSETS[2]))
        scores = [value_and_interval(every, score) for score in ("sigma", "r2", "bias")]
        title = f"`{name}`{_KINDS.get(str(every.get('kind')), '')}"
        lines.append((title, *scores, value_and_interval(poor, "sigma")))
    heading = (target, f"σ of {symbol}", "R²", "bias", f"σ, {HEADINGS[SUBSETS[2]]}")
    caption = (
        f"σ (robust scatter) and bias in {unit or 'the unit of the label'}: means over"
        f" {counted(first['n_seeds'], 'seed')} with {counted(first['n_stars'], 'test star')} each, and 95%"
        " intervals from a bootstrap over stars."
    )
    return [table(heading, lines), caption]


def _closing(options: CardOptions) -> list[str]:
    return [
        "## Licence",
        f"{options.license}. Spectra and labels are not part of this repository.",
        f"This card was written by specjax {__version__}.",
    ]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
