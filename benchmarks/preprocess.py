"""Time the way from spectra as observed to the LAMOST grid, beside spectres.

    python -m benchmarks.preprocess --out runs/preprocess.json

Spectra like DESI's: 7781 pixels of 0.8 A with uncertainties, and a mask with 1% of the pixels and every tenth
spectrum without a stretch of 100 A. Each line gives wall time and processor time of all processes; on a
machine that others use too, the processor time is the one to go by. Expect on two cores of 2024 10,000
spectra, continuum included, in 4 s, and resampling 300 times as fast as spectres, spectrum by spectrum.
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
from specjax.preprocess import normalise, rebin, to_lamost
from specjax.spectra import Spectra
from specjax.surveys.desi import WAVELENGTH
from specjax.wavelength import LAMOST_WAVELENGTH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    spectra: int = 2000
    """Spectra for each single step."""
    prepared: int = 10_000
    """Spectra from a file on disk to a file on disk by `specjax prepare`; 0 leaves it out."""
    workers: int | None = None
    """Its processes; as many as there are cores by default."""
    by_spectres: int = 20
    """Spectra that spectres resamples, one by one; 0 leaves it out."""
    out: Path | None = None
    """JSON to write."""


def main(options: Options) -> list[dict[str, Any]]:
    """Measure, print, write."""
    spectra = desi_like(options.spectra)
    rows = [
        measure("rebin, with mask and ivar", lambda: rebin(spectra, LAMOST_WAVELENGTH), len(spectra)),
        measure("continuum", lambda: normalise(spectra), len(spectra)),
        measure("to_lamost, all of it", lambda: to_lamost(spectra), len(spectra)),
    ]
    if options.by_spectres:
        rows.append(
            measure(
                "spectres, flux alone", lambda: _spectres(spectra, options.by_spectres), options.by_spectres
            )
        )
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
    """Make spectra of noise about a slope; no time depends on what is in them but for the mask."""
    rng = np.random.default_rng(seed)
    flux = (WAVELENGTH / 5000) ** -1 + 0.05 * rng.normal(size=(count, WAVELENGTH.size))
    mask = rng.random(flux.shape) < 0.01
    mask[::10, (WAVELENGTH > 4800) & (WAVELENGTH < 4900)] = True
    return Spectra.build(WAVELENGTH, flux, np.full(flux.shape, 400.0), mask, [str(k) for k in range(count)])


def measure(name: str, call: Callable[[], object], count: int) -> dict[str, Any]:
    """Time the second of two calls: the first builds and caches the operators."""
    call()
    wall, processor = time.perf_counter(), _processor_seconds()
    call()
    return {
        "name": name,
        "spectra": count,
        "wall_s": time.perf_counter() - wall,
        "processor_s": _processor_seconds() - processor,
    }


def prepare(folder: Path, count: int, workers: int | None) -> dict[str, Any]:
    """Time `specjax prepare` from one large HDF5 file to another, once."""
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
    wall, processor = time.perf_counter(), _processor_seconds()
    prepare_spectra([source], folder / "prepared.h5", workers=workers, say=lambda line: None)
    return {
        "name": "specjax prepare, file to file",
        "spectra": count,
        "wall_s": time.perf_counter() - wall,
        "processor_s": _processor_seconds() - processor,
    }


def format_row(row: dict[str, Any]) -> str:
    """Lay a measurement out as a line."""
    rate, seconds = row["spectra"] / row["processor_s"], 1e4 * row["processor_s"] / row["spectra"]
    return (
        f"{row['name']:<30} {row['spectra']:>6} spectra  wall {row['wall_s']:7.2f} s  processor"
        f" {row['processor_s']:7.2f} s  {rate:8.0f} a second, 10,000 in {seconds:.1f} s of processor time"
    )


def _spectres(spectra: Spectra, count: int) -> None:
    import spectres  # of the extra "test"

    for flux in spectra.flux[:count]:
        spectres.spectres(LAMOST_WAVELENGTH, spectra.wavelength, flux)


def _processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
