"""The Payne (Ting et al. 2019, ApJ 879, 69, arXiv:1804.01530), fitted to the source stars.

A model predicts the spectrum from the labels. It is fitted to the source stars at the resolution of the
target, once per resolution. For simulated stars, it is the Gaussian process of their emulator (as in
Starfish, Czekala et al. 2015, ApJ 812, 128). For observed stars, it is a small network, whose weights are
cached: the data-driven Payne (Xiang et al. 2019, ApJS 245, 34). The labels of a target star are those whose
spectrum fits best, given the noise, the scatter of the source stars about the model in each pixel, and errors
of continuum and flux calibration of the size that pretraining assumes. It sees no label of a target star.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.generative import Box, Whitening, fit_labels, starting_points
from specjax.checkpoints import load_model, save_model
from specjax.errors import ModelError
from specjax.models.apply import apply
from specjax.preprocess.to_grid import OVERSAMPLED, OVERSMOOTH
from specjax.pretrain.augment import AugmentConfig
from specjax.pretrain.config import StageConfig
from specjax.pretrain.corpus import MILES_FWHM
from specjax.pretrain.loop import run_stage
from specjax.pretrain.programs import StageAux
from specjax.pretrain.simulated_batches import COMPONENTS
from specjax.progress import Say, silent
from specjax.report.results import plain
from specjax.simulate.process import Components, LabelProcess, Shape
from specjax.train.losses import pseudo_huber
from specjax.typing import AnyArray, Float32Array, FloatArray, Tree

# More steps, wider networks and averages of several networks were no better on validation stars.
STAGE = StageConfig(steps=2000, batch=128, learning_rate=3e-3, chunk=1000)
ROBUST = 0.03  # residual beyond which the loss is linear, because some stars have wrong labels
CALIBRATION = AugmentConfig()  # its `continuum` and `response`
MIN_SCATTER = 1e-3  # relative to the continuum


class SpectrumNetwork(nn.Module):
    """Standardised labels (..., k) to continuum-normalised flux (..., pixels)."""

    pixels: int
    widths: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """Predict the flux."""
        x = labels
        for width in self.widths:
            x = nn.gelu(nn.Dense(width)(x))
        return 1 + 0.2 * nn.Dense(self.pixels)(x)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Payne:
    """A fitted model of spectra with the labels of its training stars.

    Attributes:
        params: of the model.
        model: (params, standardised labels (..., k)) -> flux (..., p).
        mean: (k,) of the labels of the training stars.
        std: (k,) their standard deviation.
        labels: (m, k) their standardised labels, which bound those of other stars.
        scatter: (p,) variance of the flux of the training stars about the model.
    """

    params: Tree
    model: Callable[[Tree, jax.Array], jax.Array]
    mean: FloatArray
    std: FloatArray
    labels: FloatArray
    scatter: FloatArray

    @classmethod
    def train(cls, flux: Float32Array, labels: FloatArray, cache: Path, say: Say = silent) -> Self:
        """Train a network on spectra (m, p) and labels (m, k), or take its weights from the cache."""
        standard = (labels - labels.mean(axis=0)) / labels.std(axis=0)
        network = SpectrumNetwork(flux.shape[1])
        content = json.dumps([plain(STAGE), list(network.widths), ROBUST]).encode()
        content += flux.tobytes() + labels.tobytes()
        folder = cache / f"payne-{hashlib.sha256(content).hexdigest()[:16]}"
        try:
            params = load_model(folder).arrays
        except ModelError:
            params = _train(network, flux, standard, say)
            save_model(folder, config={}, arrays=jax.tree.map(np.asarray, params))

        def model(params: Tree, labels: jax.Array) -> jax.Array:
            return apply(network, {"params": params}, labels)

        return cls._of(params, model, flux, labels)

    @classmethod
    def emulate(cls, flux: Float32Array, labels: FloatArray, shape: Shape) -> Self:
        """Fit the process of an emulator to spectra (m, p) and its labels (m, 5)."""
        parts = Components.of(flux.astype(np.float64), COMPONENTS)
        process = LabelProcess.fit(labels, parts.scores, shape)
        mean, std = (np.asarray(values, np.float32) for values in (labels.mean(axis=0), labels.std(axis=0)))

        def model(params: Tree, labels: jax.Array) -> jax.Array:
            process, mean_flux, vectors = params
            scores = process(jnp.atleast_2d(labels) * std + mean)
            spectra = mean_flux + jnp.matmul(scores, vectors, precision="highest")
            return cast(jax.Array, spectra.reshape(*labels.shape[:-1], -1))

        return cls._of((process, parts.mean, parts.vectors), model, flux, labels)

    @classmethod
    def _of(
        cls,
        params: Tree,
        model: Callable[[Tree, jax.Array], jax.Array],
        flux: Float32Array,
        labels: FloatArray,
    ) -> Self:
        """Add the scatter: the median absolute deviation of the residuals, as for a Gaussian, squared."""
        mean, std = labels.mean(axis=0), labels.std(axis=0)
        standard = (labels - mean) / std
        residual = flux - np.asarray(jax.jit(model)(params, jnp.asarray(standard, jnp.float32)))
        deviation = 1.4826 * np.median(np.abs(residual - np.median(residual, axis=0)), axis=0)
        scatter = np.maximum(deviation, MIN_SCATTER).astype(np.float64) ** 2
        return cls(params=params, model=model, mean=mean, std=std, labels=standard, scatter=scatter)

    def flux(self, labels: FloatArray) -> FloatArray:
        """Return the flux (..., p) expected at standardised labels (..., k)."""
        return np.asarray(self._programs[0](self.params, jnp.asarray(labels, jnp.float32)), np.float64)

    def jacobian(self, labels: FloatArray) -> FloatArray:
        """Return the derivatives (p, k) of the flux at standardised labels (k,)."""
        return np.asarray(self._programs[1](self.params, jnp.asarray(labels, jnp.float32)), np.float64)

    def predict(self, flux: FloatArray, variance: FloatArray) -> FloatArray:
        """Return labels (n, k) of spectra (n, p) with noise variance (n, p), inf where missing."""
        directions, candidates = calibration_errors(flux.shape[1]), self.flux(self.labels)
        box, fits = Box.around(self.labels), []
        for star, noise in zip(flux, variance, strict=True):
            whiten = Whitening.of(self.scatter + noise, directions * star)
            fits.append(self._predict_one(star, whiten, candidates, box))
        return np.array(fits) * self.std + self.mean

    def _predict_one(
        self, flux: FloatArray, whiten: Whitening, candidates: FloatArray, box: Box
    ) -> FloatArray:
        """Fit standardised labels (k,) to one spectrum, starting from those of training stars."""
        misfit = (whiten(candidates - flux) ** 2).sum(axis=1)
        return fit_labels(
            lambda x: whiten(self.flux(x) - flux),
            lambda x: whiten(self.jacobian(x).T).T,
            starting_points(self.labels, misfit),
            box,
        )

    @cached_property
    def _programs(self) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
        return jax.jit(self.model), jax.jit(jax.jacfwd(self.model, argnums=1))


def calibration_errors(pixels: int) -> FloatArray:
    """Return relative errors (q, pixels) of continuum and flux calibration of one standard deviation.

    They are Chebyshev polynomials with the coefficients that `augment` draws for the mini model.
    """
    degree = np.arange(max(CALIBRATION.continuum_degree, CALIBRATION.response_degree) + 1)
    size = np.where(degree <= CALIBRATION.continuum_degree, CALIBRATION.continuum, CALIBRATION.response)
    polynomials = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, pixels), int(degree[-1]))
    return np.asarray((polynomials * size).T, np.float64)


def delivered_fwhm(fwhm: float | None) -> float:
    """Return the resolution after `to_lamost`, in Angstrom, or that of the source if it is lower."""
    if fwhm is None:
        return MILES_FWHM
    return max(MILES_FWHM, OVERSMOOTH * fwhm if fwhm > OVERSAMPLED else fwhm)


def _train(network: SpectrumNetwork, flux: AnyArray, labels: AnyArray, say: Say) -> Tree:
    data = {"flux": jnp.asarray(flux, jnp.float32), "labels": jnp.asarray(labels, jnp.float32)}

    def loss(params: Tree, stats: Tree, data: Tree, key: jax.Array) -> tuple[jax.Array, StageAux]:
        rows = jax.random.randint(key, (STAGE.batch,), 0, len(data["labels"]))
        residual = apply(network, {"params": params}, data["labels"][rows]) - data["flux"][rows]
        return pseudo_huber(residual, ROBUST).mean() / ROBUST**2, (stats, {})

    key = jax.random.key(0)
    params = network.init(key, data["labels"][:1])["params"]
    params, _ = run_stage("payne", loss, STAGE, params=params, batch_stats={}, data=data, key=key, say=say)
    return params
