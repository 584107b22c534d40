"""The spectrum emulator: stellar labels -> flux over the continuum, and the continuum.

The spectra of a grid are decomposed into principal components, and Gaussian processes over the labels
predict their weights, in the manner of Starfish (Czekala et al. 2015, ApJ 812, 128). The emulator that ships
with the package was fitted to synthetic spectra (LTE, MARCS models, see docs/simulator.md): what it returns
is a simulation, not an observation.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from specjax.errors import DataError, ModelError
from specjax.simulate.labels import LABELS, Domain, as_text, microturbulence
from specjax.simulate.process import Components, LabelProcess, Shape, find_shape
from specjax.typing import AnyArray, Float32Array, FloatArray, Tree

COMPONENTS = 120
CONTINUUM_COMPONENTS = 8
SHAPED_BY = 30
"""Leading components that determine the covariance."""

SHIPPED = Path(__file__).parents[1] / "data" / "emulator"
AT_ONCE = 2048  # stars at a time, whose covariances with the grid take 13 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class Emulator:
    """Flux over the continuum, and the continuum, as functions of the labels.

    Attributes:
        process: predicts the weights of the components of flux and continuum.
        mean: (p,) mean flux over the continuum of the grid.
        components: (c, p) principal components.
        continuum_mean: (q,) mean logarithm of the continuum, erg/s/cm2/A at the surface.
        continuum_components: (d, q) its principal components.
        wavelength: (p,) vacuum Angstrom.
        continuum_wavelength: (q,) vacuum Angstrom.
        fwhm: resolution in Angstrom.
        noise: variance of the noise of the process.
        domain: the labels for which it holds.
        labels: (n, 5) of the grid, see `LABELS`.
        digest: of the folder from which it was read, else "".
    """

    process: LabelProcess
    mean: AnyArray
    components: AnyArray
    continuum_mean: AnyArray
    continuum_components: AnyArray
    wavelength: FloatArray
    continuum_wavelength: FloatArray
    fwhm: float
    noise: float
    domain: Domain
    labels: FloatArray
    digest: str = ""

    @classmethod
    def fit(
        cls,
        labels: FloatArray,
        wavelength: FloatArray,
        flux: AnyArray,
        continuum_wavelength: FloatArray,
        continuum: AnyArray,
        *,
        fwhm: float,
        components: int = COMPONENTS,
        shape: Shape | None = None,
    ) -> "Emulator":
        """Fit to a grid of n spectra.

        Args:
            labels: (n, 5), see `LABELS`.
            wavelength: (p,) vacuum Angstrom.
            flux: (n, p) over the continuum.
            continuum_wavelength: (q,) vacuum Angstrom.
            continuum: (n, q), positive.
            fwhm: resolution of the flux, Angstrom.
            components: principal components to keep.
            shape: covariance of the process; the default finds it (half a minute for 1,600 spectra).

        Raises:
            DataError: values that are not finite, or fewer spectra than components.
        """
        if not np.isfinite(flux).all() or not np.isfinite(labels).all():
            raise DataError("the grid has labels or flux that are not finite")
        if len(flux) <= components:
            raise DataError(f"{len(flux)} spectra are too few for {components} components")
        lines = Components.of(np.asarray(flux, np.float64), components)
        level = Components.of(np.log(np.asarray(continuum, np.float64)), CONTINUUM_COMPONENTS)
        if shape is None:
            shape = find_shape(labels, lines.scores[:, :SHAPED_BY])
        return cls(
            process=LabelProcess.fit(labels, np.concatenate([lines.scores, level.scores], axis=1), shape),
            mean=lines.mean,
            components=lines.vectors,
            continuum_mean=level.mean,
            continuum_components=level.vectors,
            wavelength=np.asarray(wavelength, np.float64),
            continuum_wavelength=np.asarray(continuum_wavelength, np.float64),
            fwhm=fwhm,
            noise=shape.noise,
            domain=Domain.around(labels),
            labels=np.asarray(labels, np.float64),
        )

    @property
    def shape(self) -> Shape:
        """The covariance, with which the same process can be fitted to other data at the same labels."""
        return Shape(np.asarray(self.process.length, np.float64), self.noise)

    def flux(self, labels: jax.Array | AnyArray) -> jax.Array:
        """Return the flux over the continuum (b, p) at labels (b, 5).

        A pure function that can be jitted, vmapped and differentiated. It does not check the domain.
        """
        return self._combined(self.process(labels))

    def spectrum(self, labels: jax.Array | AnyArray) -> jax.Array:
        """Return the flux (b, p) in erg/s/cm2/A at the star's surface; as `flux`, without a check."""
        scores = self.process(labels)
        return self._combined(scores) * self._continuum(scores)

    def continuum(self, labels: jax.Array | AnyArray) -> jax.Array:
        """Return the continuum (b, p) in erg/s/cm2/A at the star's surface; as `flux`, without a check."""
        return self._continuum(self.process(labels))

    def checked(
        self,
        *,
        teff: ArrayLike,
        logg: ArrayLike,
        fe_h: ArrayLike,
        alpha_fe: ArrayLike = 0.0,
        vmicro: ArrayLike | None = None,
    ) -> FloatArray:
        """Broadcast labels to (n, 5) and check that they are inside the domain.

        Raises:
            DataError: shapes that do not match, or labels outside the domain; it names the first such star.
        """
        known = {"teff": teff, "logg": logg, "fe_h": fe_h, "alpha_fe": alpha_fe}
        try:
            columns = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in known.values()))
            small = microturbulence(*columns[:3]) if vmicro is None else np.asarray(vmicro, np.float64)
            labels = np.stack([np.ravel(column) for column in np.broadcast_arrays(*columns, small)], axis=1)
        except ValueError as error:
            raise DataError(f"labels do not form one table: {error}") from None
        outside = self.domain.outside(labels)
        if (outside != "").any():
            star = int(np.flatnonzero(outside != "")[0])
            raise DataError(
                f"{(outside != '').sum()} of {len(labels)} stars are outside the grid of the emulator,"
                f" first star {star} ({as_text(labels[star])}) in {outside[star]}"
            )
        return labels

    def mapped(self, matrix: AnyArray, wavelength: FloatArray, fwhm: float) -> "Emulator":
        """Return the emulator of a linear function of its flux, such as a lower resolution on another grid.

        Args:
            matrix: (m, p) dense or sparse, applied to the flux over the continuum.
            wavelength: (m,) vacuum Angstrom.
            fwhm: resolution of the result, Angstrom.
        """
        return replace(
            self,
            mean=np.asarray(matrix @ self.mean, np.float32),
            components=np.asarray((matrix @ self.components.T).T, np.float32),
            wavelength=wavelength,
            fwhm=fwhm,
        )

    def save(self, folder: Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the emulator as a folder, its components in half precision, and `record` with it."""
        from specjax.checkpoints import save_model

        arrays = {
            "process": self.process._asdict(),
            "mean": self.mean,
            "components": self.components,
            "continuum": {"mean": self.continuum_mean, "components": self.continuum_components},
            "wavelength": self.wavelength,
            "continuum_wavelength": self.continuum_wavelength,
            "domain": self.domain.to_arrays(),
            "labels": self.labels,
        }
        config = {
            "emulator": {"fwhm": self.fwhm, "noise": self.noise, "labels": list(LABELS)},
            **(record or {}),
        }
        save_model(folder, config=config, arrays=arrays, half=["components"])

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> "Emulator":
        """Read the folder of an emulator; the default is the one that ships with the package.

        Raises:
            ModelError: the folder is missing, damaged or of another kind.
        """
        from specjax.checkpoints import load_model

        stored = load_model(folder)
        if "emulator" not in stored.config:
            raise ModelError(f"{folder} holds no emulator")
        arrays: Tree = stored.arrays
        return cls(
            process=LabelProcess(**arrays["process"]),
            mean=arrays["mean"],
            components=arrays["components"],
            continuum_mean=arrays["continuum"]["mean"],
            continuum_components=arrays["continuum"]["components"],
            wavelength=arrays["wavelength"],
            continuum_wavelength=arrays["continuum_wavelength"],
            fwhm=stored.config["emulator"]["fwhm"],
            noise=stored.config["emulator"]["noise"],
            domain=Domain.from_arrays(arrays["domain"]),
            labels=arrays["labels"],
            digest=stored.digest,
        )

    def _combined(self, scores: jax.Array) -> jax.Array:
        count = len(self.components)
        lines = jnp.matmul(scores[:, :count], self.components, precision="highest")
        return jnp.asarray(self.mean) + lines

    def _continuum(self, scores: jax.Array) -> jax.Array:
        """Return the continuum on the pixels, linear between the wavelengths where it is known."""
        mean, components = self._continuum_on_pixels
        count = len(self.components)
        return jnp.exp(mean + jnp.matmul(scores[:, count:], components, precision="highest"))

    @functools.cached_property
    def _continuum_on_pixels(self) -> tuple[Float32Array, Float32Array]:
        rows = [self.continuum_mean, *self.continuum_components]
        on_pixels = np.stack([np.interp(self.wavelength, self.continuum_wavelength, row) for row in rows])
        return on_pixels[0].astype(np.float32), on_pixels[1:].astype(np.float32)


@functools.cache
def shipped() -> Emulator:
    """Return the emulator that ships with the package."""
    return Emulator.load()


@functools.cache
def _program() -> Any:
    return jax.jit(shipped().flux)


def emulate(
    *,
    teff: ArrayLike,
    logg: ArrayLike,
    fe_h: ArrayLike,
    alpha_fe: ArrayLike = 0.0,
    vmicro: ArrayLike | None = None,
) -> tuple[FloatArray, Float32Array]:
    """Simulate spectra of stars with given labels, at a FWHM of 0.6 Angstrom.

    The labels are numbers or arrays that broadcast to n stars.

    Args:
        teff: effective temperature, K.
        logg: surface gravity, dex.
        fe_h: [Fe/H], dex.
        alpha_fe: [alpha/Fe], dex.
        vmicro: microturbulence, km/s; the default is that of `microturbulence`.

    Returns:
        wavelength (p,) in vacuum Angstrom and flux (n, p) over the continuum.

    Raises:
        DataError: labels outside the grid to which the emulator was fitted; it names the first such star.
    """
    emulator = shipped()
    labels = emulator.checked(teff=teff, logg=logg, fe_h=fe_h, alpha_fe=alpha_fe, vmicro=vmicro)
    flux = np.empty((len(labels), len(emulator.wavelength)), np.float32)
    for start in range(0, len(labels), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        rows = labels[part]
        size = 1 << (len(rows) - 1).bit_length()  # few programs for any number of stars
        padded = np.pad(rows, [(0, size - len(rows)), (0, 0)], mode="edge")
        flux[part] = _program()(padded)[: len(rows)]
    return emulator.wavelength, flux
