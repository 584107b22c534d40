"""Adaptation of a model to a survey, from the user's files to the run folder."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from specjax import distributed
from specjax.adapt.checks import check_label, check_settings
from specjax.adapt.configuration import Configuration
from specjax.adapt.first_look import about_labels
from specjax.adapt.inputs import NO_PAIRS, has_pairs
from specjax.adapt.left_out import LabelledStars, beside_folder, within_range
from specjax.adapt.roles import Roles, apply_roles, read_roles
from specjax.adapt.settings import AdaptConfig
from specjax.adapt.shares import preprocess_shares
from specjax.adapt.splits import Splits
from specjax.adapt.study import run_study
from specjax.adapt.target import Target, make_targets
from specjax.catalogues.labels import join_labels, read_labels
from specjax.errors import DataError
from specjax.flags import Flag, count_flags
from specjax.foundation import DtypeChoice, load
from specjax.plurals import counted
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.progress import Say, silent
from specjax.report.results import Row
from specjax.spectra import Spectra
from specjax.surveys import read, read_xp
from specjax.typing import FloatArray

_LONGEST = 60  # characters of the name of a survey, which begins those of folders and plots


class NoXPError(DataError):
    """Configurations that need Gaia XP spectra, where there are none."""


def adapt_survey(
    *,
    model: str | Path,
    spectra: Path,
    labels: Path,
    out: Path,
    label: str | Sequence[str] = "fe_h",
    configurations: Sequence[str] = ("lora4",),
    config: AdaptConfig | None = None,
    steps: int | None = None,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    xp: Path | None = None,
    fwhm: float | None = None,
    dtype: DtypeChoice = "auto",
    files: Callable[[AdaptConfig], Mapping[str, str]] | None = None,
    say: Say = silent,
) -> list[Row]:
    """Adapt a model to a survey's files and write the run folder of `study.run_study`.

    Args:
        model: a model folder, or "mini".
        spectra: what `surveys.read` takes; a file from `specjax prepare` is not preprocessed again.
        labels: a table with the columns id and `label`, in physical units. A column LABEL_err holds errors of
            the label, which the calibration of the intervals takes into account; zero and negative ones are
            taken as unknown. Even if it is none of the labels, a column fe_h divides the stars into the
            table's subsets. Columns split_0, split_1, ... as `roles.split_table` writes them give the role of
            each spectrum for each seed, in place of the sizes in `config`; the first `config.seeds` of them
            are used, or the first for all seeds with `config.one_split`.
        out: the run folder.
        label: what to adapt to, one of the model's labels or several. Each gets adapters of its own, trained
            on the stars that have it; what does not depend on the label is computed once.
        configurations: names, see `Configuration.parse`.
        config: seeds, splits and stages.
        steps: of joint training, in place of those in `config` (see `AdaptConfig.with_steps`).
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.
        xp: Gaia XP spectra with the same ids, for LoRA3; a prepared file may contain them. Configurations
            that need them are skipped where there are none, unless that leaves no other.
        fwhm: spectral resolution in Angstrom. Spectra of much lower resolution than the LAMOST pixels are
            slightly smoothed (see `preprocess.to_lamost`). Without `xp`, the Gaia XP side for LoRA3 is made
            from the spectra's own flux, if it covers at least 80% of 336-1020 nm.
        dtype: type of the model's matrix products, as in `foundation.load`.
        files: makes further files of the run folder, see `study.run_study`.
        say: receives lines of progress.

    Raises:
        SpecjaxError: an invalid option, file or model, or unsuitable data.
    """
    wanted = [label] if isinstance(label, str) else list(dict.fromkeys(label))
    parsed = [Configuration.parse(name) for name in configurations]
    config = config or AdaptConfig()
    if steps is not None:
        config = config.with_steps(steps)
        if config.objective != "joint" or not any(configuration.tower_groups for configuration in parsed):
            say("--steps has no effect: no configuration trains the tower jointly with the head")
    check_settings(parsed, config)
    foundation = load(model, dtype=dtype)
    for name in wanted:
        check_label(foundation, name)
    observed = read(spectra, survey, wavelength_medium=wavelength_medium, wavelength_unit=wavelength_unit)
    roles = read_roles(labels)
    joined = _joined_labels(observed, labels, wanted)
    if xp is not None and not any(config.needs_xp(configuration) for configuration in parsed):
        say("--xp has no effect: only lora3 in the sequential objective needs Gaia XP spectra")
    parsed, xp_side = _with_xp(parsed, config, lambda: _xp_side(observed, spectra, xp, fwhm), say)
    lamost = preprocess_shares(functools.partial(to_lamost, fwhm=fwhm), observed, spectra)
    stars = LabelledStars.read(labels, wanted, lamost, roles)
    if roles is None:
        stars.check(out, config.train, config.validate)
    targets = make_targets(
        file_name(observed.survey or spectra.stem),
        lamost,
        {name: within_range(name, joined[name]) for name in wanted},
        fe_h=joined.get("fe_h"),
        errors={name: joined[f"{name}_err"] for name in wanted if f"{name}_err" in joined},
        usable=None if roles is None else roles.labelled(observed.id),
        xp=xp_side,
        fwhm=fwhm,
    )
    if observed.prepared is None:  # the files of prepared spectra are not known here
        wavelength = {"medium": observed.medium, "unit": wavelength_unit}
        targets = [dataclasses.replace(target, wavelength=wavelength) for target in targets]
    splits: dict[str, Splits] = {}
    if roles is not None:
        asked = config.seeds
        targets, config, splits[targets[0].name] = _splits_of_table(targets, config, roles)
        say(f"the splits are those of {labels}")
        if config.one_split:
            say(f"{labels}: the first split for all seeds")
        elif config.seeds < asked:
            say(f"{labels} has splits for only {config.seeds} of the {asked} seeds that were asked for")
    parsed = _with_pairs(parsed, config, targets[0], say)
    for target in targets:
        describe_target(target, say, target.label if len(targets) > 1 else "")
        if summary := stars.summary(target.label):
            say(f"{labels}: {target.label}{summary}")
    for line in about_labels(targets, joined, observed.id, labels):
        say(line)
    rows = run_study(
        foundation,
        targets,
        config,
        out,
        configurations=parsed,
        record={
            "model": str(model),
            "dtype": foundation.dtype,
            "spectra": spectra,
            "labels": labels,
            "refused": targets[0].refused,
        },
        splits=splits,
        files=lambda config: {**stars.files(), **(files(config) if files else {})},
        say=say,
    )
    if distributed.is_main():
        beside_folder(out).unlink(missing_ok=True)  # of an earlier run that was refused
    return rows


def file_name(name: str) -> str:
    """Return the name of a survey as the name of a folder: without what a shell or a disk does not take.

    >>> file_name("my data/2024"), file_name("lamost+sdss"), len(file_name("S" * 1000))
    ('my-data-2024', 'lamost+sdss', 60)
    """
    return re.sub(r"[^\w.+-]+", "-", name)[:_LONGEST].strip("-.") or "survey"


def describe_target(target: Target, say: Say, label: str = "") -> None:
    """Report how many spectra are labelled, unlabelled and flagged, and why; `label` is one of several."""
    why = count_flags(target.refused.values())
    of = f" ({label})" if label else ""
    say(
        f"{target.name}: {len(target.labelled)} labelled{of} and"
        f" {counted(len(target.unlabelled), 'unlabelled spectrum', 'unlabelled spectra')}"
        + (f"; flagged, and not used as labelled ones: {why}" if why else "")
    )


def _joined_labels(observed: Spectra, labels: Path, wanted: Sequence[str]) -> dict[str, FloatArray]:
    """Return the labels and, if the table has them, their errors and fe_h, in the order of the spectra.

    They are NaN where unknown.
    """
    optional = {*(f"{label}_err" for label in wanted), "fe_h"} - set(wanted)
    columns = [*wanted, *sorted(optional & set(read_labels(labels).colnames))]
    return join_labels(observed.id, read_labels(labels, columns), columns)


def _splits_of_table(
    targets: Sequence[Target], config: AdaptConfig, roles: Roles
) -> tuple[list[Target], AdaptConfig, Splits]:
    """Return the first splits of a table of labels, and a configuration that states their sizes.

    All labels have the same splits, as every star of the splits must have every label.
    """
    applied = [apply_roles(roles, target) for target in targets]
    splits = applied[0][1]
    splits = splits.repeated(config.seeds) if config.one_split else splits[: config.seeds]
    sizes = {"train": splits.train.shape[1], "validate": splits.validate.shape[1]}
    chosen = [target for target, _ in applied]
    return chosen, dataclasses.replace(config, seeds=len(splits), **sizes), splits


def _with_xp(
    configurations: list[Configuration], config: AdaptConfig, read_xp_side: Callable[[], Spectra], say: Say
) -> tuple[list[Configuration], Spectra | None]:
    """Return the Gaia XP side, if a configuration needs it, and the configurations that can be adapted.

    Raises:
        SpecjaxError: all of them need it and there is none, or the file that was given for it is invalid.
    """
    needing = [one for one in configurations if config.needs_xp(one)]
    if not needing:
        return configurations, None
    try:
        return configurations, read_xp_side()
    except NoXPError as error:
        return _skipped(configurations, needing, str(error), say), None


def _with_pairs(
    configurations: list[Configuration], config: AdaptConfig, target: Target, say: Say
) -> list[Configuration]:
    """Return the configurations that the target's pairs with Gaia XP spectra, or none of them, suffice for.

    Raises:
        NoXPError: all of them need pairs, and there are none.
    """
    needing = [one for one in configurations if config.needs_xp(one)]
    if not needing or has_pairs(target):
        return configurations
    return _skipped(configurations, needing, f"{target.name}: {NO_PAIRS}", say)


def _skipped(
    configurations: list[Configuration], needing: list[Configuration], why: str, say: Say
) -> list[Configuration]:
    rest = [one for one in configurations if one not in needing]
    names = ", ".join(one.name for one in needing)
    if not rest:
        raise NoXPError(f"{why}; or leave out --objective sequential: jointly, {names} can do without")
    say(f"skipped {names}: {why}")
    return rest


def _xp_side(observed: Spectra, path: Path, xp: Path | None, fwhm: float | None) -> Spectra:
    """Return Gaia XP spectra in the order of the observed ones; rows without one are wholly masked."""
    if xp is None and (contained := read_xp(path)) is not None:
        return contained
    if xp is None and fwhm is None:
        raise NoXPError(
            "LoRA3 needs Gaia XP spectra of the stars: give them with --xp, or give --fwhm, the resolution"
            " (Angstrom) of spectra that themselves cover 336-1020 nm"
        )
    if xp is None:
        made = to_gaia_xp(observed, fwhm_from=fwhm)
        if (made.meta["flag"] != Flag.GOOD).all():
            raise NoXPError("no spectrum covers enough of 336-1020 nm to replace Gaia XP: give --xp")
        return made
    contained = read_xp(xp)
    return _in_order(to_gaia_xp(read(xp)) if contained is None else contained, observed, xp)


def _in_order(xp: Spectra, observed: Spectra, path: Path) -> Spectra:
    """Return the Gaia XP spectra with the ids of the observed ones; wholly masked where there is none."""
    row_of = {name: row for row, name in enumerate(xp.id.tolist())}
    rows = np.array([row_of.get(name, -1) for name in observed.id.tolist()])
    if (rows < 0).all():
        raise DataError(f"{path} has no spectrum of any star: no id is that of an observed spectrum")
    found = xp[np.maximum(rows, 0)]
    mask = found.mask | (rows < 0)[:, None]
    return dataclasses.replace(
        found,
        flux=np.where(mask, 0.0, found.flux),
        ivar=np.where(mask, 0.0, found.ivar),
        mask=mask,
        id=observed.id,
    )
