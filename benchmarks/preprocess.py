"""Time the preprocessing of observed spectra to the LAMOST grid, against spectres.

    python -m benchmarks.preprocess --out runs/preprocess.json

The spectra resemble those of DESI: 7781 pixels of 0.8 A with uncertainties, 1% of the pixels masked and a
gap of 100 A in every tenth spectrum. They share one grid, or each has its own, shifted by its velocity.
Spectra to fill are on the LAMOST grid, with a tenth of the pixels masked, in stretches. Each row gives the
wall time and the CPU time of all processes; on a shared machine, compare CPU times. Expected on one core of
2024: 10,000 spectra in 2.5 s, continuum included, and resampling 300 times as fast as spectres, which takes
one spectrum at a time.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from specjax.prepare import prepare_spectra
from specjax.preprocess import PrincipalFill, normalise, rebin, to_lamost
from specjax.spectra import Spectra
from specjax.surveys.desi import WAVELENGTH
from specjax.typing import BoolArray, FloatArray
from specjax.wavelength import LAMOST_WAVELENGTH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    spectra: int = 2000
    """Number of spectra for each single step."""
    prepared: int = 10_000
    """Number of spectra for `specjax prepare`, from file to file; 0 leaves it out."""
    workers: int | None = None
    """Processes of `specjax prepare`; by default one per core."""
    by_spectres: int = 20
    """Number of spectra that spectres resamples; 0 leaves it out."""
    out: Path | None = None
    """JSON file to write."""


def main(options: Options) -> list[dict[str, Any]]:
    """Time all steps, print and write the results."""
    spectra = desi_like(options.spectra)
    own = on_own_grids(spectra)
    model, (flux, ivar, mask) = fill_model(), gapped(options.spectra)
    rows = [
        measure("rebin, with mask and ivar", lambda: rebin(spectra, LAMOST_WAVELENGTH), len(spectra)),
        measure("continuum", lambda: normalise(spectra), len(spectra)),
        measure("to_lamost, all of it", lambda: to_lamost(spectra), len(spectra)),
        measure("rebin, different grids", lambda: rebin(own, LAMOST_WAVELENGTH), len(own)),
        measure("to_lamost, different grids", lambda: to_lamost(own), len(own)),
        measure("fill, 30 components", lambda: model.apply(flux, ivar, mask), len(flux)),
    ]
    if count := options.by_spectres:
        rows.append(measure("spectres, flux alone", lambda: _spectres(spectra, count), count))
    if options.prepared:
        with TemporaryDirectory() as folder:
            rows.append(prepare(Path(folder), options.prepared, options.workers))
    for row in rows:
        print(format_row(row))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    return rows


def desi_like(count: int, seed: int = 0) -> Spectra:
    """Make sloped spectra with noise; apart from the mask, their content does not affect the times."""
    rng = np.random.default_rng(seed)
    flux = (WAVELENGTH / 5000) ** -1 + 0.05 * rng.normal(size=(count, WAVELENGTH.size))
    mask = rng.random(flux.shape) < 0.01
    mask[::10, (WAVELENGTH > 4800) & (WAVELENGTH < 4900)] = True
    return Spectra.build(WAVELENGTH, flux, np.full(flux.shape, 400.0), mask, [str(k) for k in range(count)])


def on_own_grids(spectra: Spectra, seed: int = 1) -> Spectra:
    """Shift spectra on one grid by velocities of 60 km/s, so that each has a grid of its own."""
    beta = np.random.default_rng(seed).normal(0.0, 2e-4, (len(spectra), 1))
    return dataclasses.replace(spectra, wavelength=spectra.wavelength * (1 + beta))


def fill_model(components: int = 30, seed: int = 2) -> PrincipalFill:
    """Make a fill with random components."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(LAMOST_WAVELENGTH.size, components)))[0].T
    mean, variance = np.ones(LAMOST_WAVELENGTH.size), np.linspace(1.0, 0.1, components)
    return PrincipalFill(mean=mean, components=basis, variance=variance, noise=0.01)


def gapped(count: int, stretches: int = 3, seed: int = 3) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Make flux, ivar and mask (n, 1462) with about a tenth of the pixels masked, in stretches."""
    rng = np.random.default_rng(seed)
    pixels, length = LAMOST_WAVELENGTH.size, LAMOST_WAVELENGTH.size // (10 * stretches)
    flux = 1 + 0.05 * rng.normal(size=(count, pixels))
    mask = np.zeros(flux.shape, dtype=bool)
    for first in rng.integers(0, pixels - length, (stretches, count, 1)):
        np.put_along_axis(mask, first + np.arange(length), True, axis=1)
    return flux, np.where(mask, 0.0, 400.0), mask


def measure(name: str, call: Callable[[], object], count: int) -> dict[str, Any]:
    """Time the second of two calls, as the first builds and caches the operators."""
    call()
    return _timed(name, call, count)


def host_side(folder: Path, count: int) -> Callable[[], object]:
    """Make the call of all that `specjax predict` does with a prepared file before the compiled programs.

    It reads the spectra, a tenth of whose pixels are masked, checks them and fills the masked pixels.
    """
    from specjax.foundation import load
    from specjax.surveys import prepared

    model, path = load("mini"), folder / "gapped.h5"
    flux, ivar, mask = gapped(count)
    raw = folder / "raw.h5"
    with h5py.File(raw, "w") as file:
        file["wavelength"], file["id"] = LAMOST_WAVELENGTH, np.arange(count)
        file["flux"], file["ivar"], file["mask"] = flux.astype(np.float32), ivar.astype(np.float32), mask
        file["wavelength_medium"] = "vacuum"
    prepare_spectra([raw], path, workers=1)

    def call() -> object:
        return [
            model.model_input(to_lamost(prepared.read(path, rows=(start, min(start + 4096, count)))))
            for start in range(0, count, 4096)
        ]

    return call


def prepare(folder: Path, count: int, workers: int | None) -> dict[str, Any]:
    """Time `specjax prepare` once, from one large HDF5 file to another."""
    part, source = desi_like(min(count, 500)), folder / "desi.h5"
    with h5py.File(source, "w") as file:
        file["wavelength"] = part.wavelength
        for name in ("flux", "ivar", "mask"):
            array = getattr(part, name)
            kind = np.bool_ if name == "mask" else np.float32
            data = file.create_dataset(name, (count, WAVELENGTH.size), dtype=kind)
            for start in range(0, count, len(array)):
                data[start : start + len(array)] = array[: count - start]
        file["id"] = np.arange(count)
    out = folder / "prepared.h5"
    return _timed(
        "specjax prepare, file to file", lambda: prepare_spectra([source], out, workers=workers), count
    )


def _timed(name: str, call: Callable[[], object], count: int) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    call()
    times = {"wall_s": time.perf_counter() - wall, "processor_s": _cpu_seconds() - cpu}
    return {"name": name, "spectra": count, **times}


def format_row(row: dict[str, Any]) -> str:
    """Format a measurement as a line."""
    rate, seconds = row["spectra"] / row["processor_s"], 1e4 * row["processor_s"] / row["spectra"]
    return (
        f"{row['name']:<30} {row['spectra']:>6} spectra  wall {row['wall_s']:7.2f} s"
        f"  CPU {row['processor_s']:7.2f} s  {rate:8.0f} per second, 10,000 in {seconds:.1f} s of CPU time"
    )


def _spectres(spectra: Spectra, count: int) -> None:
    import spectres  # from the extra "test"

    for flux in spectra.flux[:count]:
        spectres.spectres(LAMOST_WAVELENGTH, spectra.wavelength, flux)


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
