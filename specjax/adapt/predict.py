"""Prediction of labels of spectra with an adapted model, or with the model as it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specjax.adapt.configuration import Configuration
from specjax.adapt.forward import predict_label
from specjax.adapt.uncertainties import signal_to_noise
from specjax.calibration.calibration import Calibration
from specjax.errors import ConfigError
from specjax.flags import FLAG_DTYPE, USABLE, Flag
from specjax.foundation import BackboneFeatures, Foundation
from specjax.preprocess import to_lamost
from specjax.spectra import Spectra
from specjax.typing import AnyArray, BoolArray, FloatArray, StrArray

Adapter = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The arrays of an adapter, leaves (S, ...), and its configuration."""

_ROWS_AT_ONCE = 8192  # of a prepared file, which may be larger than memory


def predict(
    model: Foundation, spectra: Spectra, adapter: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, AnyArray]:
    """Predict with the factors of every seed of an adapter: `predict_labels` for one."""
    return predict_labels(model, spectra, [(adapter, config)])


def predict_labels(model: Foundation, spectra: Spectra, adapters: Sequence[Adapter]) -> dict[str, AnyArray]:
    """Predict with the factors of every seed of one adapter, or of one per label.

    Args:
        model: the base model of the adapters.
        spectra: n spectra as observed, or prepared as those that the adapters were trained on.
        adapters: of each, its arrays, leaves (S, ...), and its configuration, as stored with it. They were
            trained on spectra with the same preparation.

    Returns:
        Columns (n,) of a table: id; LABEL, the mean over seeds; LABEL_std, their standard deviation;
        LABEL_err, half the width of the 68% interval, and the ends of this interval and of that of 95%,
        LABEL_lo, LABEL_hi, LABEL_lo95 and LABEL_hi95; flag and masked_fraction from preprocessing; and
        distance, above 1 for a spectrum unlike those that the model was trained on (NaN if the model has no
        out-of-domain flags). Out-of-domain spectra without another flag are flagged "unlike_training",
        "hotter_than_training" or "cooler_than_training". These and "masked_fraction" keep their labels;
        spectra with any other flag get NaN.

        An adapter without a calibration (see `calibration_of`) has no intervals. Its LABEL_err is LABEL_std
        and the scatter of the adaptation's test stars in quadrature, NaN if the latter is unknown, as for an
        imported adapter.
    """
    blocks = [
        _predict_block(model, spectra[start : start + _ROWS_AT_ONCE], adapters)
        for start in range(0, max(len(spectra), 1), _ROWS_AT_ONCE)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _predict_block(model: Foundation, spectra: Spectra, adapters: Sequence[Adapter]) -> dict[str, AnyArray]:
    """Predict spectra that are held in memory together, as `predict_labels`."""
    lamost = prepared_as(spectra, adapters[0][1])
    flag = lamost.meta["flag"].astype(FLAG_DTYPE)
    usable = np.isin(flag, USABLE)
    rows = lamost[np.flatnonzero(usable)]
    # The training domain is that of the base model, and labels share its features.
    shared = usable.any() and (model.ood is not None or len(adapters) > 1)
    base = model.backbone_features(rows) if shared else None
    snr = signal_to_noise(lamost)
    labels: dict[str, AnyArray] = {}
    for adapter, config in adapters:
        labels |= _label_columns(model, rows, base, usable, snr, adapter, config)
    distance, flag = _outside(model, base, usable, flag)
    return {
        "id": lamost.id,
        **labels,
        "flag": flag,
        "masked_fraction": lamost.meta["masked_fraction"],
        "distance": distance,
    }


def _label_columns(
    model: Foundation,
    rows: Spectra,
    base: BackboneFeatures | None,
    usable: BoolArray,
    snr: FloatArray,
    adapter: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, AnyArray]:
    """Return the columns (n,) of one label; `rows` are the usable spectra, and `base` their features."""
    label, heads = config["label"], Configuration.parse(config["configuration"]).heads
    values = np.full((config["seeds"], len(usable)), np.nan)
    if usable.any():
        values[:, usable] = predict_label(model, heads, adapter, rows, label, base)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(usable), np.nan)
    mean, calibration = values.mean(axis=0), calibration_of(config)
    if calibration is None:
        scatter = np.nan if config["sigma"] is None else config["sigma"]
        errors = {f"{label}_err": np.hypot(np.nan_to_num(spread) + 0 * values[0], scatter)}
    else:
        errors = calibration.intervals(mean, snr, spread=spread).columns(label)
    return {label: mean, f"{label}_std": spread, **errors}


def calibration_of(config: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration that is stored with an adapter.

    None for an imported adapter, one that was made before there were calibrations, or one with a calibration
    of another version.
    """
    return Calibration.from_json(config.get("calibration"))


def predict_unadapted(
    model: Foundation, lamost: Spectra, head: str = "mlp2", labels: Sequence[str] | None = None
) -> dict[str, AnyArray]:
    """Predict labels with a head of the model as it is.

    Args:
        model: the model.
        lamost: n spectra from `preprocess.to_lamost`.
        head: "mlp1" or "mlp2".
        labels: some of the model's labels; all by default.

    Returns:
        Columns (n,): id; each label, and LABEL_err, the scatter of the head on stars that it was not trained
        on, if the model folder knows it; flag, masked_fraction and distance, see `predict`.
    """
    flag = lamost.meta["flag"].astype(FLAG_DTYPE)
    usable = np.isin(flag, USABLE)
    scatter = model.label_scatter(head)
    columns: dict[str, AnyArray] = {}
    for name in model.config.labels if labels is None else labels:
        columns[name] = np.full(len(lamost), np.nan)
        if name in scatter:
            columns[f"{name}_err"] = np.where(usable, scatter[name], np.nan)
    base = None
    if usable.any():
        base = model.backbone_features(lamost[np.flatnonzero(usable)])
        for name, values in model.predict_from_features(model.head_features(base, head), head).items():
            if name in columns:
                columns[name][usable] = values
    distance, flag = _outside(model, base, usable, flag)
    return {
        "id": lamost.id,
        **columns,
        "flag": flag,
        "masked_fraction": lamost.meta["masked_fraction"],
        "distance": distance,
    }


def _outside(
    model: Foundation, base: BackboneFeatures | None, usable: BoolArray, flag: StrArray
) -> tuple[FloatArray, StrArray]:
    """Return the distance (n,) and the flags (n,) with those of spectra outside the training domain.

    `base` holds the features of the usable spectra; None if there are none, or no domain is known.
    """
    distance, flag = np.full(len(flag), np.nan), flag.copy()
    if base is not None and (outside := model.out_of_domain(base)) is not None:
        distance[usable] = outside[0]
        flag[usable] = np.where(flag[usable] == Flag.GOOD, outside[1], flag[usable])
    return distance, flag


def preparation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `to_lamost` of the spectra that an adapter was trained on, and the tower.

    Imported adapters know less: the resolution at most, and neither method nor tower.
    """
    return dict(config.get("preparation") or {"fwhm": config.get("fwhm")})


def prepared_as(spectra: Spectra, config: Mapping[str, Any]) -> Spectra:
    """Preprocess spectra as those that the adapter was trained on were; refuse spectra prepared otherwise."""
    wanted = preparation_of(config)
    lamost = to_lamost(spectra, **{name: value for name, value in wanted.items() if name != "tower"})
    found = lamost.prepared or {}
    for name, value in wanted.items():
        if "tower" in wanted and found.get(name) != value:
            raise ConfigError(
                f"the spectra were prepared with {name} {found.get(name)}, the adapter's with {value}"
            )
    return lamost
