"""From a user's files to an adapted model, and from an adapted model to a table of labels."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.adapt.adaptation import AdaptConfig, predict_with
from specjax.adapt.configuration import parse_configuration
from specjax.adapt.splits import Roles, apply_roles, read_roles
from specjax.adapt.study import run_study
from specjax.adapt.target import Splits, Target, make_target
from specjax.catalogues.labels import join_labels, read_labels
from specjax.checkpoints import load_adapter
from specjax.errors import ConfigError, DataError
from specjax.foundation import Foundation, load
from specjax.preprocess import to_gaia_xp, to_lamost
from specjax.progress import Say
from specjax.report.results import Row
from specjax.spectra import Spectra
from specjax.surveys import read, read_xp
from specjax.surveys.io.many import read_each
from specjax.surveys.io.tables import write_table
from specjax.typing import AnyArray, FloatArray

_ROWS_AT_ONCE = 8192  # of a prepared file, which may be larger than memory


def adapt_survey(
    *,
    model: str | Path,
    spectra: Path,
    labels: Path,
    out: Path,
    label: str = "fe_h",
    configurations: Sequence[str] = ("lora4",),
    config: AdaptConfig | None = None,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    xp: Path | None = None,
    fwhm: float | None = None,
    say: Say = print,
) -> list[Row]:
    """Adapt a model to a survey's files and write the run folder of `study.run_study`.

    Args:
        model: a model folder, or "mini".
        spectra: what `surveys.read` takes, a file from `specjax prepare` too: that is not prepared again.
        labels: a table with columns id and `label`, in physical units; a column fe_h too sorts the stars
            into the table's subsets where the label is another. Columns split_0, split_1, ... as
            `labels.split_table` makes them say which stars train, validate, test and stay unlabelled for each
            seed, in place of `config`'s numbers: the first `config.seeds` of them are used.
        configurations: names as `adapt.adaptation.parse_configuration` takes them.
        config: seeds, splits and stages.
        wavelength_medium, wavelength_unit: what array files do not say themselves.
        xp: Gaia XP spectra of the same ids, for LoRA3; a prepared file may bring them along.
        fwhm: resolution of the spectra in Angstrom. Spectra much broader than LAMOST's pixels are smoothed a
            little (see `preprocess.to_lamost`). Without `xp`, their own flux gives the XP side for LoRA3,
            if it covers 336-1020 nm but for a fifth.

    Raises:
        SpecjaxError: one line on what is wrong with an option, a file, the model or the data.
    """
    for name in configurations:
        parse_configuration(name)
    foundation = load(model)
    observed = read(spectra, survey, wavelength_medium=wavelength_medium, wavelength_unit=wavelength_unit)
    roles = read_roles(labels)
    joined = _joined_labels(observed, labels, label)
    partner = None
    if any("lora3" in name for name in configurations):
        partner = _xp_side(observed, spectra, xp, fwhm)
    target = make_target(
        observed.survey or spectra.stem,
        to_lamost(observed, fwhm=fwhm),
        joined[label],
        label=label,
        fe_h=joined.get("fe_h"),
        usable=None if roles is None else roles.labelled(observed.id),
        xp=partner,
        fwhm=fwhm,
    )
    config, splits = config or AdaptConfig(), {}
    if roles is not None:
        target, config, drawn = _given_splits(target, config, roles)
        splits[target.name] = drawn
        say(f"{labels} says who trains ({config.train}), validates ({config.validate}) and tests")
    describe_target(target, say)
    return run_study(
        foundation,
        [target],
        config,
        out,
        configurations=configurations,
        record={"model": str(model), "spectra": spectra, "labels": labels, "refused": target.refused},
        splits=splits,
        say=say,
    )


def predict_survey(
    *,
    model: str | Path,
    adapter: Path,
    spectra: Sequence[Path],
    out: Path,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Predict the label of spectra with an adapter and write a table; returns its columns (see `predict`).

    Raises:
        SpecjaxError: one line on what is wrong with a file, the model or the adapter.
    """
    foundation = load(model)
    stored = load_adapter(adapter, base=foundation.digest)

    def predict_file(path: Path) -> dict[str, AnyArray]:
        observed = read(path, survey, wavelength_medium=wavelength_medium, wavelength_unit=wavelength_unit)
        say(f"{path}: {len(observed)} spectra")
        return predict(foundation, observed, stored.arrays, stored.config)

    parts, _ = read_each(spectra, predict_file, "one of spectra")  # one bad file never stops the others
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    flagged = Counter(columns["flag"].tolist())
    del flagged[""]
    for flag, count in flagged.items():
        say(f"{count} of {len(columns['id'])} spectra are flagged {flag!r}")
    about = {name: stored.config[name] for name in ("configuration", "target", "seeds", "sigma")}
    about = {name: value for name, value in about.items() if value is not None}
    write_table(out, columns, meta={"model": str(model), "adapter": str(adapter), **about})
    return columns


def predict(
    model: Foundation, spectra: Spectra, adapter: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, AnyArray]:
    """Predict with every seed's factors of an adapter; returns the columns of a table.

    They are id; LABEL, the mean over seeds; LABEL_std, the spread over seeds; LABEL_err, that spread and the
    scatter of the adaptation's test stars in quadrature, NaN where that is not known, as of an imported
    adapter; flag and masked_fraction from the preprocessing; and distance, which is above 1 for a spectrum
    unlike all that the model was trained on (NaN where the model cannot tell). Such a spectrum is flagged
    "unlike_training" where it has no other flag, and one that looks like the stars beyond the model's
    range "hotter_than_training" or "cooler_than_training". These and "masked_fraction" keep their numbers; a
    spectrum with another flag gets NaN.
    """
    blocks = [
        _predict_block(model, spectra[start : start + _ROWS_AT_ONCE], adapter, config)
        for start in range(0, max(len(spectra), 1), _ROWS_AT_ONCE)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _predict_block(
    model: Foundation, spectra: Spectra, adapter: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, AnyArray]:
    """Predict spectra that are taken into memory together, as `predict`."""
    lamost = _as_adapted(spectra, config)
    usable = np.isin(lamost.meta["flag"], ("", "masked_fraction"))
    label = config["label"]
    values = np.full((config["seeds"], len(lamost)), np.nan)
    distance, flag = np.full(len(lamost), np.nan), lamost.meta["flag"].astype("<U32")
    if usable.any():
        rows = lamost[np.flatnonzero(usable)]
        ivar = rows.ivar if rows.has_ivar else None
        # The domain is that of the model as it was before any adaptation.
        summary = model.summarise(rows.flux, ivar=ivar, mask=rows.mask)
        values[:, usable] = predict_with(
            model, config["configuration"], adapter, label, rows.flux, ivar, rows.mask, summary
        )
        if (found := model.outside(summary)) is not None:
            distance[usable] = found[0]
            flag[usable] = np.where(flag[usable] == "", found[1], flag[usable])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(lamost), np.nan)
    scatter = np.nan if config["sigma"] is None else config["sigma"]
    return {
        "id": lamost.id,
        label: values.mean(axis=0),
        f"{label}_std": spread,
        f"{label}_err": np.hypot(np.nan_to_num(spread) + 0 * values[0], scatter),
        "flag": flag,
        "masked_fraction": lamost.meta["masked_fraction"],
        "distance": distance,
    }


def _as_adapted(spectra: Spectra, config: Mapping[str, Any]) -> Spectra:
    """Prepare spectra as those were that the adapter was trained on; refuse what was prepared otherwise."""
    done = dict(config.get("preparation") or {"fwhm": config.get("fwhm")})  # adapters of old say no more
    lamost = to_lamost(spectra, **{name: value for name, value in done.items() if name != "tower"})
    found = lamost.prepared or {}
    for name, value in done.items():
        if "tower" in done and found.get(name) != value:
            raise ConfigError(
                f"the spectra were prepared with {name} {found.get(name)}, the adapter's with {value}"
            )
    return lamost


def describe_target(target: Target, say: Say) -> None:
    """Say how many spectra are labelled, unlabelled and left out, and why."""
    why = ", ".join(f"{count} {flag}" for flag, count in Counter(target.refused.values()).items())
    say(
        f"{target.name}: {len(target.labelled)} labelled and {len(target.unlabelled)} unlabelled spectra"
        + (f"; flagged, and not used as labelled ones: {why}" if why else "")
    )


def _joined_labels(observed: Spectra, labels: Path, label: str) -> dict[str, FloatArray]:
    """The label and, where the table has it, fe_h, in the order of the spectra; NaN where unknown."""
    columns = [label]
    if label != "fe_h" and "fe_h" in read_labels(labels).colnames:
        columns.append("fe_h")
    return join_labels(observed.id, read_labels(labels, columns), columns)


def _given_splits(target: Target, config: AdaptConfig, roles: Roles) -> tuple[Target, AdaptConfig, Splits]:
    """The first of the splits that a table of labels gives, and a configuration that says what they are."""
    target, splits = apply_roles(roles, target)
    splits = splits[: config.seeds]
    sizes = {"train": splits.train.shape[1], "validate": splits.validate.shape[1]}
    return target, dataclasses.replace(config, seeds=len(splits), **sizes), splits


def _xp_side(observed: Spectra, path: Path, xp: Path | None, fwhm: float | None) -> Spectra:
    """Find the Gaia XP side, in the order of the observed spectra; rows without one are all masked."""
    if xp is None and (brought := read_xp(path)) is not None:
        return brought
    if xp is None and fwhm is None:
        raise ConfigError(
            "LoRA3 needs the Gaia XP side of the stars: give --xp with their XP spectra, or --fwhm with the"
            " resolution (Angstrom) of spectra that themselves cover 336-1020 nm"
        )
    if xp is None:
        partner = to_gaia_xp(observed, fwhm_from=fwhm)
        if (partner.meta["flag"] != "").all():
            raise DataError("no spectrum covers enough of 336-1020 nm to stand for Gaia XP: give --xp")
        return partner
    side = read_xp(xp)
    given = to_gaia_xp(read(xp)) if side is None else side
    row_of = {name: row for row, name in enumerate(given.id.tolist())}
    rows = np.array([row_of.get(name, -1) for name in observed.id.tolist()])
    if (rows < 0).all():
        raise DataError(f"no id in {xp} is that of a spectrum")
    found = given[np.maximum(rows, 0)]
    mask = found.mask | (rows < 0)[:, None]
    return Spectra(
        wavelength=found.wavelength,
        flux=np.where(mask, 0.0, found.flux),
        ivar=np.where(mask, 0.0, found.ivar),
        mask=mask,
        id=observed.id,
        survey="gaia_xp",
        has_ivar=found.has_ivar,
    )
