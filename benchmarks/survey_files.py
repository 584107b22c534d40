"""Files of any number of spectra, and an adapter of the shipped model, to time predictions with.

The spectra resemble those of DESI: 7781 pixels with uncertainties, 1% of them masked, and a gap of 100 A in
every tenth. A few thousand different ones are repeated, which does not affect the times.
"""

import os
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from benchmarks.preprocess import desi_like
from specjax import lora
from specjax.checkpoints import save_adapter
from specjax.foundation import Foundation
from specjax.prepare import prepare_spectra
from specjax.spectra import Spectra

SEEDS = 16
PER_FILE = 4096  # of raw spectra


def lined(count: int, seed: int = 0) -> Spectra:
    """Make spectra with absorption lines of random depth, which pass the quality checks."""
    random, spectra = np.random.default_rng(seed), desi_like(count, seed)
    centres, widths = random.uniform(3900, 6900, 60), random.uniform(2, 6, 60)
    profiles = np.exp(-0.5 * ((spectra.wavelength - centres[:, None]) / widths[:, None]) ** 2)
    depth = random.uniform(0.1, 0.4, (1, 60)) * 10 ** random.uniform(-0.5, 0.1, (count, 1))
    flux = spectra.flux * (1 - np.clip(depth @ profiles, 0, 0.8))
    return Spectra.build(spectra.wavelength, flux, spectra.ivar, spectra.mask, spectra.id)


def write_raw(folder: Path, count: int) -> Path:
    """Write `count` spectra to HDF5 files of up to `PER_FILE`, most of them links; return their folder."""
    folder.mkdir(parents=True)
    whole, rest = divmod(count, PER_FILE)
    for size, copies in ((PER_FILE, whole), (rest, 1)):
        if not (size and copies):
            continue
        first = folder / f"spectra-{size}.h5"
        _write_arrays(first, lined(size))
        for number in range(1, copies):
            os.link(first, folder / f"spectra-{size}-{number}.h5")
    return folder


def _write_arrays(path: Path, spectra: Spectra) -> None:
    with h5py.File(path, "w") as file:
        file["wavelength"], file["id"] = spectra.wavelength, np.arange(len(spectra))
        file["flux"], file["ivar"] = spectra.flux.astype(np.float32), spectra.ivar.astype(np.float32)
        file["mask"], file["wavelength_medium"] = spectra.mask, "vacuum"


def write_prepared(raw: Path, out: Path, count: int) -> Path:
    """Prepare the first file of a folder of raw spectra, and repeat its rows until there are `count`."""
    source = max(raw.iterdir(), key=lambda path: path.stat().st_size)
    once = out.with_suffix(".once.h5")
    prepare_spectra([source], once, workers=1)
    with h5py.File(once) as given, h5py.File(out, "w") as file:
        _repeat_rows(given, file, len(given["id"]), count)
    once.unlink()
    return out


def _repeat_rows(given: Any, made: Any, rows: int, count: int) -> None:
    """Copy a group, with the rows of each dataset (rows, ...) repeated until there are `count`."""
    made.attrs.update(given.attrs)
    for name, item in given.items():
        if isinstance(item, h5py.Group):
            _repeat_rows(item, made.create_group(name), rows, count)
        elif len(item) == rows:
            data, block = made.create_dataset(name, (count, *item.shape[1:]), item.dtype), item[:]
            for start in range(0, count, rows):
                data[start : start + rows] = block[: count - start]
        else:
            given.copy(name, made)


def write_adapter(folder: Path, model: Foundation, seeds: int = SEEDS) -> Path:
    """Write a LoRA4 adapter with random factors for the metallicity."""
    configs = {"lora4": model.config.lora4}
    shapes = jax.eval_shape(lambda: lora.init_adapters(jax.random.key(0), model.params, configs))
    random = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda leaf: random.normal(0, 0.01, (seeds, *leaf.shape)).astype(np.float32), shapes
    )
    record = {
        "configuration": "lora4", "target": "random", "label": "fe_h", "seeds": seeds, "sigma": 0.1,
    }  # fmt: skip
    assert model.digest is not None
    save_adapter(folder, config=record, arrays=factors, base=model.digest)
    return folder
