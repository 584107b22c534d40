"""Rehearse a pretraining run of the published size: its input, speed, memory and how long it would take.

    python -m experiments.pretrain_rehearsal --spectra 200000 --steps 100          # on a GPU
    python -m experiments.pretrain_rehearsal --spectra 4000 --steps 4 --batch 16   # on a laptop

It writes simulated pairs of LAMOST and Gaia XP spectra in the layout of SpecCLIP's files, reads them as
training does without training, trains the LAMOST backbone for some steps, and multiplies. The file is kept
and used again. It also has the labels of the stars, so that it serves for all stages.
"""

import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from specjax.atomic import atomic_file
from specjax.config import get_preset
from specjax.errors import ConfigError
from specjax.models.apply import apply
from specjax.models.specformer import SpecFormer
from specjax.pretrain import simulated, simulated_batches
from specjax.pretrain.config import PretrainConfig
from specjax.pretrain.from_files import FilesConfig, pretrain_from_files
from specjax.pretrain.monitor import LOGS, read
from specjax.pretrain.source import Source
from specjax.progress import say
from specjax.services.stellar_libraries import fetch_stellar_libraries
from specjax.simulate.emulator import shipped
from specjax.surveys import mastar

AT_ONCE = 512  # spectra that are simulated together
INPUT_SECONDS = 20.0
TARGET, EPOCHS = 1_000_000, 200
LABELS = ("teff", "logg", "fe_h", "alpha_fe")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the command line."""

    spectra: int = 200_000
    """Pairs to simulate; each takes 7 kB."""
    steps: int = 20
    """Steps to train."""
    batch: int = 64
    """Spectra of a batch; the published number is 512."""
    preset: str = "paper"
    """Sizes of the model."""
    out: Path = Path("runs/rehearsal")
    """Folder of the simulated spectra and the model."""
    seed: int = 0
    """Seed of the spectra."""
    peak: float | None = None
    """Peak of the device in TFLOP/s, to state the share that is used."""


def write_pairs(path: Path, count: int, seed: int) -> None:
    """Simulate pairs with noise, and write them and their labels in the layout of SpecCLIP's files."""
    stars = simulated.build(shipped(), mastar.read(fetch_stellar_libraries() / "mastarhc_v2"), say)
    config = PretrainConfig.of("mini-physics", seed=seed)
    material = simulated_batches.make_material(stars, config)
    draw = jax.jit(lambda key, data: material.draw(key, data, AT_ONCE, config.head_augment))
    mean, std = (material.scaler[name] for name in ("label_mean", "label_std"))
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        group = file.create_group("train")
        flux = group.create_dataset("lamost_spectra", (count, 1462, 1), "f4")
        xp_flux = group.create_dataset("gaia_spectra", (count, 343, 1), "f4")
        columns = {name: group.create_dataset(name, (count,), "f4") for name in LABELS}
        group["source_ids"] = np.arange(count)
        for first in range(0, count, AT_ONCE):
            rows = slice(first, min(first + AT_ONCE, count))
            size = rows.stop - rows.start
            batch = draw(jax.random.fold_in(jax.random.key(seed), first), material.data)
            flux[rows] = np.where(batch["valid"], batch["flux"], np.nan)[:size, :, None]
            xp_flux[rows] = np.where(batch["xp_valid"], batch["xp_flux"], np.nan)[:size, :, None]
            labels = np.asarray(batch["labels"]) * std + mean
            for name, values in zip(LABELS, labels.T, strict=True):
                columns[name][rows] = values[:size]
            say(f"simulated {rows.stop} of {count} pairs")


def input_rate(path: Path, batch: int, seconds: float = INPUT_SECONDS) -> tuple[float, float]:
    """Read pairs as training does for some seconds; return spectra per second, and per second of one core."""
    feed = Source.open([path], held_out_share=0.0).feed(("lamost", "gaia_xp"), batch)
    next(feed)
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        count += len(next(feed)["row"])
    return count / (time.perf_counter() - began), count / (time.process_time() - cpu)


def forward_flops(preset: str) -> float:
    """Return the floating-point operations of the LAMOST backbone on one spectrum, as XLA counts them."""
    shape = get_preset(preset).specformer
    tokens = jax.ShapeDtypeStruct((1, shape.num_tokens, shape.token_dim), np.float32)
    network = SpecFormer(shape)
    params = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    lowered = jax.jit(lambda params, x: apply(network, {"params": params}, x)).lower(params, tokens)
    cost: Any = lowered.cost_analysis()
    return float(cost["flops"])


def peak_memory() -> str:
    """Return the largest memory that the process and its devices have held."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    stats = jax.local_devices()[0].memory_stats() or {}
    device = (
        f", {stats['peak_bytes_in_use'] / 1e9:.1f} GB on the device" if "peak_bytes_in_use" in stats else ""
    )
    return f"{host:.2f} GB on the host{device}"


def rehearse(config: Config) -> None:
    """Run the rehearsal and print what it measured."""
    if config.steps < 3:
        raise ConfigError("the first steps are not timed: rehearse at least 3")
    path = config.out / f"pairs-{config.spectra}-{config.seed}.h5"
    if not path.is_file():
        write_pairs(path, config.spectra, config.seed)
    wall, core = input_rate(path, config.batch)
    print(f"input alone: {wall:,.0f} spectra/s, {core:,.0f} per second of one core; {peak_memory()}")
    every = max(config.steps // 8, 1)
    run = FilesConfig(
        preset=config.preset,
        spectra=(path,),
        stages=("backbone",),
        steps=config.steps,
        batch=config.batch,
        held_out=0.0,
        report_every=every,
        save_every=config.steps,
    )
    pretrain_from_files(run, out=config.out / "model", say=say)
    lines = read(config.out / "model" / LOGS)[1:]  # the first report includes compilation
    rate = float(np.median([line["steps_per_s"] for line in lines]))
    report(config, rate)


def report(config: Config, rate: float) -> None:
    """Print the speed of training and the time of the published run, with the arithmetic."""
    spectra = rate * config.batch
    flops = 3 * forward_flops(config.preset)  # the backward pass has two products for each one
    used = flops * spectra / 1e12
    share = "" if config.peak is None else f", {used / config.peak:.1%} of {config.peak:g} TFLOP/s"
    print(f"training: {rate:.3g} steps/s x {config.batch} = {spectra:,.1f} spectra/s; {peak_memory()}")
    print(f"{flops / 1e9:.1f} GFLOP per spectrum x {spectra:,.1f} spectra/s = {used:.3g} TFLOP/s{share}")
    steps = TARGET * EPOCHS / config.batch
    hours = steps / rate / 3600
    print(
        f"{TARGET:,} spectra x {EPOCHS} epochs / {config.batch} = {steps:,.0f} steps;"
        f" / {rate:.3g} steps/s = {hours:,.0f} h = {hours / 24:,.1f} days on {len(jax.devices())} device(s)"
    )


if __name__ == "__main__":
    import tyro

    from specjax.cli import run

    run(lambda: rehearse(tyro.cli(Config, description=__doc__)))
