"""What the terms of a report mean, one line each."""

import re
from collections.abc import Iterable, Mapping, Sequence

from specjax.report.results import Row

_GROUPS = {
    "lora1": "low-rank factors in the attention of the backbone",
    "lora2": "low-rank factors in the label head MLP1, which reads the mean token",
    "lora3": "low-rank factors in the projection",
    "lora4": "low-rank factors in the label head MLP2, which reads the projected vector",
}
_BASELINES = {
    "kernel-ridge": "kernel ridge regression on the labelled stars alone",
    "gp-target": "Gaussian process on the labelled stars alone",
    "gp-joint": "Gaussian process on the source stars and the labelled stars",
    "mlp-zero-shot": "plain network on the spectra of the source stars, not adapted",
    "mlp-lora": "the same network, adapted with low-rank factors",
    "mlp-affine": "the same network, its predictions corrected by a straight line",
}
_SCORES = {
    "robust scatter σ": "standard deviation of predicted minus literature labels, robust to outliers"
    " (biweight)",
    "R²": "1 - (sum of squared residuals) / (sum of squared deviations of the labels from their mean): 1 is"
    " perfect, 0 as good as predicting the mean for every star, and negative worse than that",
    "bias": "median of predicted minus literature labels",
    "gain in σ": "σ of the zero-shot row with the same head minus σ of this row; coloured where the interval"
    " excludes zero, green for better and orange for worse",
    "[low, high]": "95% interval of a number, from drawing the test stars anew (bootstrap)",
}
_CALIBRATION = {
    "in 68%, in 95% (coverage)": "fraction of the test labels that lie in the intervals of their predictions",
    "width": "mean length of the intervals, in the unit of the label",
    "CRPS": "continuous ranked probability score: mean distance between the predicted distribution and the"
    " label, in the unit of the label; smaller is better",
}
_SNR = {"S/N": "median signal-to-noise ratio per pixel of the model grid, not per pixel of the instrument"}


def terms(rows: Sequence[Row], calibration: Sequence[Row]) -> dict[str, str]:
    """Return the terms that the tables of a run use, with their meaning.

    Args:
        rows: of table.json.
        calibration: rows of calibration.json; none if there is no such file.
    """
    names = list(dict.fromkeys(str(row["configuration"]) for row in rows))
    found = {**_about_names(names), **_SCORES}
    if calibration:
        found |= _CALIBRATION
    if any("snr" in str(row.get("subset", "")) for row in calibration):
        found |= _SNR
    return found


def _about_names(names: Sequence[str]) -> dict[str, str]:
    """Explain the names of configurations and baselines."""
    found = {}
    if any(name.startswith("zero-shot-") for name in names):
        found["zero-shot-mlp1, -mlp2"] = "the model as it is, with its label head MLP1 or MLP2"
    found |= _of(_GROUPS, (group for name in names for group in re.findall(r"lora[1-4]", name)))
    if any(re.match(r"lora\d\+", name) for name in names):
        found["a+b"] = "a and b trained together"
    if any(name.endswith(("-mean", "-fused")) for name in names):
        found["-mean, -fused"] = (
            "mean of the predictions of all seeds; one adapter made of those of all seeds"
        )
    return found | _of(_BASELINES, names)


def _of(known: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return what is known of these names, in the order of `known`."""
    wanted = set(names)
    return {name: text for name, text in known.items() if name in wanted}
