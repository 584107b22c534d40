"""Prediction of labels with an adapted model, from the user's files to a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import predict_label
from specjax.checkpoints import load_adapter
from specjax.errors import ConfigError
from specjax.flags import FLAG_DTYPE, USABLE, Flag
from specjax.foundation import Foundation, load
from specjax.preprocess import to_lamost
from specjax.progress import Say, silent
from specjax.spectra import Spectra
from specjax.surveys import read
from specjax.surveys.io.many import read_each
from specjax.surveys.io.tables import write_table, written_format
from specjax.typing import AnyArray

_ROWS_AT_ONCE = 8192  # of a prepared file, which may be larger than memory


def predict_survey(
    *,
    model: str | Path,
    adapter: Path,
    spectra: Sequence[Path],
    out: Path,
    survey: str | None = None,
    wavelength_medium: str | None = None,
    wavelength_unit: str | None = None,
    say: Say = silent,
) -> dict[str, AnyArray]:
    """Predict the label of spectra with an adapter and write a table.

    Args:
        model: a model folder, or "mini".
        adapter: an adapter folder, made from this model.
        spectra: files or folders that `surveys.read` takes; unreadable ones are left out and reported.
        out: the table to write.
        survey: as in `surveys.read`.
        wavelength_medium: likewise.
        wavelength_unit: likewise.
        say: receives lines of progress.

    Returns:
        The columns of the table, see `predict`.

    Raises:
        SpecjaxError: no file is readable, or the model or the adapter is invalid.
    """
    written_format(out)
    foundation = load(model)
    stored = load_adapter(adapter, base=foundation.digest)

    def predict_file(path: Path) -> dict[str, AnyArray]:
        observed = read(path, survey, wavelength_medium=wavelength_medium, wavelength_unit=wavelength_unit)
        say(f"{path}: {len(observed)} spectra")
        return predict(foundation, observed, stored.arrays, stored.config)

    parts, _ = read_each(spectra, predict_file, "a file of spectra")  # a bad file does not stop the others
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for flag, count in Counter(columns["flag"].tolist()).items():
        if flag != Flag.GOOD:
            say(f"{count} of {len(columns['id'])} spectra are flagged {flag!r}")
    about = {name: stored.config[name] for name in ("configuration", "target", "seeds", "sigma")}
    about = {name: value for name, value in about.items() if value is not None}
    write_table(out, columns, meta={"model": str(model), "adapter": str(adapter), **about})
    return columns


def predict(
    model: Foundation, spectra: Spectra, adapter: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, AnyArray]:
    """Predict with the factors of every seed of an adapter.

    Args:
        model: the base model of the adapter.
        spectra: n spectra as observed, or prepared as those that the adapter was trained on.
        adapter: its arrays, leaves (S, ...).
        config: its configuration, as stored with it.

    Returns:
        Columns (n,) of a table: id; LABEL, the mean over seeds; LABEL_std, their standard deviation;
        LABEL_err, that and the scatter of the adaptation's test stars in quadrature, NaN if the latter is
        unknown, as for an imported adapter; flag and masked_fraction from preprocessing; and distance, above
        1 for a spectrum unlike those that the model was trained on (NaN if the model has no out-of-domain
        flags). Out-of-domain spectra without another flag are flagged "unlike_training",
        "hotter_than_training" or "cooler_than_training". These and "masked_fraction" keep their labels;
        spectra with any other flag get NaN.
    """
    configuration = Configuration.parse(config["configuration"])
    blocks = [
        _predict_block(model, spectra[start : start + _ROWS_AT_ONCE], configuration, adapter, config)
        for start in range(0, max(len(spectra), 1), _ROWS_AT_ONCE)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _predict_block(
    model: Foundation,
    spectra: Spectra,
    configuration: Configuration,
    adapter: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, AnyArray]:
    """Predict spectra that are held in memory together, as `predict`."""
    lamost = _prepared(spectra, config)
    label, flag = config["label"], lamost.meta["flag"].astype(FLAG_DTYPE)
    usable = np.isin(flag, USABLE)
    values = np.full((config["seeds"], len(lamost)), np.nan)
    distance = np.full(len(lamost), np.nan)
    if usable.any():
        rows = lamost[np.flatnonzero(usable)]
        # The training domain is that of the base model.
        base = None if model.ood is None else model.backbone_features(rows)
        values[:, usable] = predict_label(model, configuration.heads, adapter, rows, label, base)
        if base is not None and (outside := model.out_of_domain(base)) is not None:
            distance[usable] = outside[0]
            flag[usable] = np.where(flag[usable] == Flag.GOOD, outside[1], flag[usable])
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


def _prepared(spectra: Spectra, config: Mapping[str, Any]) -> Spectra:
    """Preprocess spectra as those that the adapter was trained on were; refuse spectra prepared otherwise."""
    wanted = dict(config.get("preparation") or {"fwhm": config.get("fwhm")})  # imported adapters have less
    lamost = to_lamost(spectra, **{name: value for name, value in wanted.items() if name != "tower"})
    found = lamost.prepared or {}
    for name, value in wanted.items():
        if "tower" in wanted and found.get(name) != value:
            raise ConfigError(
                f"the spectra were prepared with {name} {found.get(name)}, the adapter's with {value}"
            )
    return lamost
