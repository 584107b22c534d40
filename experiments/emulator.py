"""Fit the spectrum emulator to a grid of synthetic spectra, and show its accuracy on spectra left out.

    python -m experiments.emulator --grid grid.npz --out specjax/data/emulator --report docs

It takes about a minute. The grid is a file of `experiments.synthetic_grid`, or any .npz with `wave` (air
Angstrom), `flux_norm`, `cont_wave`, `continuum`, `fwhm` and the labels. Expected in five-fold
cross-validation, smoothed to R = 1800: a median error of 0.00015 of the continuum at 5000-7000 K, and of
0.0005 below 5000 K.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.preprocess.operators import SIGMA_PER_FWHM, gaussian
from specjax.progress import say
from specjax.report import style
from specjax.simulate.emulator import Emulator
from specjax.simulate.labels import LABELS
from specjax.typing import AnyArray, FloatArray
from specjax.wavelength import LAMOST_WAVELENGTH, air_to_vacuum

FOLDS = 5
POWER = 1800.0  # resolving power at which the errors are counted, that of LAMOST
TEFF_BINS = (3900.0, 4300.0, 4600.0, 5000.0, 5500.0, 6000.0, 7000.0, 8000.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command line."""

    grid: Path
    """The grid, .npz."""
    out: Path = Path("runs/emulator")
    """Folder to write: the emulator."""
    report: Path | None = None
    """Folder of the plot and the table of the accuracy, emulator.png and emulator.ecsv."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Synthetic spectra, see `Emulator.fit`."""

    labels: FloatArray
    wavelength: FloatArray
    flux: AnyArray
    continuum_wavelength: FloatArray
    continuum: AnyArray
    fwhm: float

    @classmethod
    def read(cls, path: Path) -> "Grid":
        """Read a grid; its wavelengths are in air.

        Raises:
            DataError: not an .npz file, or without one of the arrays.
        """
        try:
            with np.load(path) as file:
                return cls(
                    labels=np.stack([file[name] for name in LABELS], axis=1).astype(np.float64),
                    wavelength=air_to_vacuum(file["wave"]),
                    flux=file["flux_norm"].astype(np.float32),
                    continuum_wavelength=air_to_vacuum(file["cont_wave"]),
                    continuum=file["continuum"],
                    fwhm=float(file["fwhm"]),
                )
        except KeyError as error:
            raise DataError(f"{path} is not a grid of spectra: {error.args[0]}") from None
        except ValueError as error:
            raise DataError(f"{path} is not a grid of spectra: {error}") from None

    def fit(self, rows: AnyArray, **options: Any) -> Emulator:
        """Fit an emulator to some of the spectra."""
        return Emulator.fit(
            self.labels[rows],
            self.wavelength,
            self.flux[rows],
            self.continuum_wavelength,
            self.continuum[rows],
            fwhm=self.fwhm,
            **options,
        )


def main(config: Config) -> None:
    """Fit, cross-validate and write."""
    grid = Grid.read(config.grid)
    say(f"fitting {len(grid.labels)} spectra")
    emulator = grid.fit(np.arange(len(grid.labels)))
    say(f"lengths in standardised labels {np.round(emulator.shape.length, 2)}, noise {emulator.noise:.1e}")
    error, continuum = left_out_errors(grid, emulator)
    rows = accuracy(grid.labels[:, 0], error, continuum)
    for row in rows:
        print("  ".join(f"{name} {value:.5g}" for name, value in row.items()))
    emulator.save(config.out, {"accuracy": rows})
    print(f"wrote {config.out}")
    if config.report is not None:
        write_report(config.report, grid.labels[:, 0], error, rows)


def left_out_errors(grid: Grid, emulator: Emulator) -> tuple[FloatArray, FloatArray]:
    """Return errors on spectra left out, in `FOLDS` folds.

    Returns:
        The errors of the flux over the continuum (n, 1462) after smoothing to `POWER`, on the LAMOST pixels,
        and the relative errors of the continuum (n, q).
    """
    sigma = LAMOST_WAVELENGTH / POWER * SIGMA_PER_FWHM
    smooth = gaussian(grid.wavelength, LAMOST_WAVELENGTH, sigma)
    weights = smooth.weights / smooth.full[:, None]
    order = np.random.default_rng(0).permutation(len(grid.labels))
    error = np.empty((len(order), LAMOST_WAVELENGTH.size))
    continuum = np.empty((len(order), grid.continuum_wavelength.size))
    for fold in range(FOLDS):
        say(f"fold {fold + 1} of {FOLDS}")
        left_out = np.sort(order[fold::FOLDS])
        fitted = grid.fit(np.setdiff1d(order, left_out), shape=emulator.shape)
        error[left_out] = (weights @ (fitted.flux(grid.labels[left_out]) - grid.flux[left_out]).T).T
        level = np.asarray(fitted.continuum(grid.labels[left_out]))
        at = [np.interp(grid.continuum_wavelength, grid.wavelength, row) for row in level]
        continuum[left_out] = np.array(at) / grid.continuum[left_out] - 1
    return error, continuum


def accuracy(teff: FloatArray, error: FloatArray, continuum: FloatArray) -> list[dict[str, float]]:
    """Return the median, the 95th percentile and the largest error of the spectra by temperature."""
    edges = [*itertools.pairwise(TEFF_BINS), (TEFF_BINS[0], 5000.0), (5000.0, 7000.0)]
    rows = []
    for low, high in edges:
        inside = (teff >= low) & (teff < high)
        size = np.abs(error[inside])
        rows.append(
            {
                "teff_min": low,
                "teff_max": high,
                "n_spectra": int(inside.sum()),
                "median": float(np.median(size)),
                "p95": float(np.percentile(size, 95)),
                "rms": float(np.sqrt((size**2).mean())),
                "continuum_median": float(np.median(np.abs(continuum[inside]))),
            }
        )
    return rows


def write_report(folder: Path, teff: FloatArray, error: FloatArray, rows: list[dict[str, float]]) -> None:
    """Write the table and the plot of the errors against temperature and wavelength."""
    from astropy.table import Table

    table = Table(rows)
    for name in ("teff_min", "teff_max"):
        table[name].unit = "K"
    with atomic_file(folder / "emulator.ecsv") as path:
        table.write(path, format="ascii.ecsv", overwrite=True)
    size = np.abs(error)
    with style.paper_figure(style.PAGE, 2.5) as figure:
        left, right = figure.subplots(1, 2)
        left.semilogy(teff, np.median(size, axis=1), "o", ms=1.5, mew=0, label="median over pixels")
        left.semilogy(teff, np.percentile(size, 95, axis=1), "s", ms=1.5, mew=0, label="95th percentile")
        left.set(xlabel="Teff (K)", ylabel="|error| / continuum, spectra left out")
        left.legend()
        groups = (("Teff < 5000 K", teff < 5000, "-"), ("5000-7000 K", (teff >= 5000) & (teff < 7000), "--"))
        for name, inside, line in groups:
            right.semilogy(LAMOST_WAVELENGTH, np.median(size[inside], axis=0), line, lw=0.6, label=name)
        right.set(xlabel="vacuum wavelength (Angstrom)", ylabel="median |error| / continuum")
        right.legend()
        style.save_figure(figure, folder / "emulator.png")


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: main(tyro.cli(Config, description=__doc__)))
