"""What a pretrained model knows, tested on held-out stars: labels from frozen vectors, and hidden pixels."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.atomic import atomic_file
from specjax.config import SpecFormerConfig
from specjax.foundation import Foundation
from specjax.models.apply import apply
from specjax.models.specformer import SpecFormer
from specjax.models.tokens import detokenise, standardise, tokenise
from specjax.pretrain.objectives import retrieval
from specjax.pretrain.source import Source
from specjax.progress import Say
from specjax.report import style
from specjax.report.metrics import r2, robust_sigma
from specjax.surveys.training_parts import Part
from specjax.surveys.training_rows import Rows
from specjax.train.losses import chunk_mask
from specjax.typing import AnyArray, BoolArray, Float32Array, FloatArray
from specjax.wavelength import LAMOST_WAVELENGTH

LABELS = ("teff", "logg", "fe_h", "alpha_fe")
STARS = 2048
"""Held-out stars that are used, at most."""

FEWEST = 50
"""Stars with a label that a linear head needs."""

RIDGE = 1e-3
PROBES, RECONSTRUCTION = "probes.json", "reconstruction.png"


def probe(model: Foundation, source: Source, folder: Path, say: Say) -> dict[str, float]:
    """Score a model on held-out stars; write PROBES and, with a LAMOST encoder, RECONSTRUCTION.

    For every label that the files have: R2 and scatter of a linear head on the frozen LAMOST vectors, fitted
    to half of the stars and scored on the others. For pairs: the fraction of LAMOST spectra whose own Gaia XP
    spectrum is among the one and the five most similar ones of up to STARS stars.
    """
    folder.mkdir(exist_ok=True)
    scores: dict[str, float] = {}
    if "lamost" in model.params and source.count("lamost"):
        scores |= _linear(model, source)
        scores |= _retrieval(model, source)
        _plot_reconstruction(model, source, folder / RECONSTRUCTION)
    for name, value in scores.items():
        say(f"held-out {name} {value:.4g}")
    with atomic_file(folder / PROBES) as path:
        path.write_text(json.dumps(scores, indent=1) + "\n")
    return scores


def _linear(model: Foundation, source: Source) -> dict[str, float]:
    parts = [part for part in source.held_out if "lamost" in part.sides]
    labels = [name for name in LABELS if parts and all(name in part.labels for part in parts)]
    if not labels:
        return {}
    rows = _read(parts, ("lamost",), labels)
    vectors = model.embed(_unmasked(rows["flux"], rows["valid"])).astype(np.float64)
    scores = {}
    for column, name in enumerate(labels):
        values = rows["labels"][:, column].astype(np.float64)
        known = np.isfinite(values)
        if known.sum() >= FEWEST:
            truth, predicted = linear_head(vectors[known], values[known])
            scores[f"linear {name} R2"] = float(r2(truth, predicted))
            scores[f"linear {name} sigma"] = float(robust_sigma(predicted - truth))
    return scores


def linear_head(vectors: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fit a ridge regression to every other star; return truth and prediction of the others.

    The ridge is RIDGE times the mean variance of the vectors (n, d).
    """
    fitted = np.arange(len(values)) % 2 == 0
    centre, mean = vectors[fitted].mean(axis=0), values[fitted].mean()
    x = vectors - centre
    gram = x[fitted].T @ x[fitted]
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, x[fitted].T @ (values[fitted] - mean))
    return values[~fitted], mean + x[~fitted] @ weights


def _retrieval(model: Foundation, source: Source) -> dict[str, float]:
    parts = [part for part in source.held_out if {"lamost", "gaia_xp"} <= part.sides.keys()]
    if not parts or "projection" not in model.params.get("gaia_xp", {}):
        return {}
    rows = _read(parts, ("lamost", "gaia_xp"))
    z = model.embed(_unmasked(rows["flux"], rows["valid"]))
    z_xp = model.embed(_unmasked(rows["xp_flux"], rows["xp_valid"]), "gaia_xp")
    shared = model.config.projection.shared_dim
    found = retrieval(jnp.asarray(z[:, :shared]), jnp.asarray(z_xp[:, :shared]))
    return {f"retrieval of {len(z)} {name}": float(value) for name, value in found.items()}


def _read(parts: Sequence[Part], towers: Sequence[str], labels: Sequence[str] = ()) -> dict[str, AnyArray]:
    rows = Rows(parts, towers, labels)
    return rows.read(0, min(STARS, len(rows)))


def _unmasked(flux: Float32Array, valid: BoolArray) -> Float32Array:
    """Replace masked pixels (n, p) by the mean of their spectrum's other pixels."""
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    mean = np.where(valid, flux, 0).sum(axis=1, keepdims=True) / count
    return np.where(valid, flux, mean).astype(np.float32)


def _plot_reconstruction(model: Foundation, source: Source, path: Path, stars: int = 3) -> None:
    """Plot spectra, what was hidden of them, and what the LAMOST encoder predicts there."""
    shape, backbone = model.config.specformer, model.params["lamost"]["backbone"]
    rows = source.examples(("lamost",), stars)
    flux = jnp.asarray(_unmasked(rows["flux"], rows["valid"]))
    standard, _, _ = standardise(flux)
    predicted, hidden = hidden_pixels(shape, backbone, flux)
    with style.paper_figure(style.PAGE, 1.4 * len(flux) + 0.2) as figure:
        axes = np.ravel(figure.subplots(len(flux), squeeze=False, sharex=True))
        for ax, true, made, gone in zip(axes, standard, predicted, hidden, strict=True):
            wavelength = LAMOST_WAVELENGTH[: len(true)]
            guess = np.where(gone, made, np.nan)
            ax.plot(wavelength, true, color=style.GREY, lw=0.6, label="observed")
            ax.plot(wavelength, guess, color=style.VERMILION, lw=0.8, label="predicted where hidden")
        figure.supylabel("standardised flux", fontsize=style.NORMAL)
        axes[-1].set_xlabel("vacuum wavelength (Angstrom)")
        axes[0].legend(ncols=2)
        style.save_figure(figure, path)


def hidden_pixels(shape: SpecFormerConfig, backbone: Any, flux: jax.Array) -> tuple[jax.Array, BoolArray]:
    """Hide chunks of spectra (n, p) as in training, but of enough tokens to hide pixels where these overlap.

    Returns:
        The predicted standardised flux (n, p), and True (n, p) for pixels that no visible token contains.
    """
    tokens = tokenise(flux, shape)
    enough = 2 * -(-shape.window // shape.stride) - 1
    width = max(shape.mask_width, min(enough, shape.num_tokens // shape.mask_chunks - 1))
    hidden = chunk_mask(jax.random.key(0), len(tokens), replace(shape, mask_width=width))
    seen = jnp.where(hidden[..., None], 0, tokens)
    predicted = apply(SpecFormer(shape), {"params": backbone}, seen, method="predict_tokens")
    if shape.flux_scale is not None:  # these tokens hold (flux - 1)/flux_scale
        _, mean, std = standardise(flux)
        predicted = (predicted * shape.flux_scale + (1 - mean)[..., None]) / std[..., None]
    visible = np.zeros(flux.shape, bool)
    for window in range(shape.num_windows):
        pixels = slice(window * shape.stride, window * shape.stride + shape.window)
        visible[:, pixels] |= ~np.asarray(hidden)[:, window + 1, None]
    last = (shape.num_windows - 1) * shape.stride + shape.window
    visible[:, last:] = True
    return detokenise(predicted, shape), ~visible
