"""How much memory single pieces of work take at most, each in a process of its own.

`python -m benchmarks.memory specjax|torch WORK ROWS SEEDS PRESET DTYPE` does one piece and prints its seconds
and peak, of the device where that keeps count and else of the process, imports included (JAX's in both).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.timing import Row

Call = Callable[[], Any]


def rows(preset: str, dtype: str, *, quick: bool) -> Iterator[Row]:
    """Measure embedding, a LoRA1 step and LoRA4 runs of few and of many seeds, beside PyTorch where it is."""
    from benchmarks.in_torch import available

    work = [("embedding", 8 if quick else 64, 1), ("LoRA1 step", 2, 1), ("LoRA1 step", 2, 4)]
    work += [("LoRA4 run", 60, seeds) for seeds in ((1, 16) if quick else (1, 16, 256))]
    for name, count, seeds in work:
        found = _measure("specjax", name, count, seeds, preset, dtype)
        note = f"peak memory {found['peak'] / 2**30:.2f} GiB"
        if seeds == 1 and not available():
            beside = _measure("torch", name, count, seeds, preset, dtype)
            note += f", PyTorch {beside['peak'] / 2**30:.2f} GiB"
        what = f"{name}, {count} {'stars' if name == 'LoRA4 run' else 'spectra'}, {preset}, seeds: {seeds}"
        times = {"specjax": [found["seconds"]]}
        yield Row(section="g", what=what, count=seeds, unit="seeds", times=times, note=note)


def _measure(who: str, *words: object) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", who, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(who: str, work: str, count: str, seeds: str, preset: str, dtype: str) -> None:
    """Do one piece of work twice; print the second's seconds and the peak as JSON."""
    from benchmarks.about import peak_memory
    from benchmarks.timing import seconds

    make = _in_specjax if who == "specjax" else _in_torch
    call = make(work, int(count), int(seeds), preset, dtype)
    seconds(call)
    measured = {"seconds": seconds(call), "peak": peak_memory() if who == "specjax" else _torch_peak()}
    print(json.dumps(measured))


def _in_specjax(work: str, count: int, seeds: int, preset: str, dtype: str) -> Call:
    from benchmarks import in_specjax
    from specjax.config import get_preset

    model = in_specjax.random_model(get_preset(preset), dtype)
    if work == "embedding":
        flux = in_specjax.random_spectra(model.config.specformer.num_pixels, count)
        return lambda: model.embed(flux)
    if work == "LoRA1 step":
        return in_specjax.MaskedModelling(model, in_specjax.random_tokens(model, count)).call(seeds)
    return in_specjax.HeadRun(model, *_features(model.config.projection.dim, count), 80).call(seeds)


def _in_torch(work: str, count: int, seeds: int, preset: str, dtype: str) -> Call:
    from benchmarks.in_torch import TorchSide
    from specjax.config import get_preset

    config = get_preset(preset)
    side, shape, random = TorchSide(config, dtype == "bfloat16"), config.specformer, np.random.default_rng(0)
    if work == "embedding":
        return side.embed("projected", random.standard_normal((count, shape.num_pixels), np.float32))
    if work == "LoRA1 step":
        tokens = random.standard_normal((count, shape.num_tokens, shape.token_dim), np.float32)
        return side.masked_modelling(tokens, random.random(tokens.shape[:2]) < 0.5, seeds)
    return side.head_run(*_features(config.projection.dim, count), seeds, 80)


def _features(width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.standard_normal((count, width), np.float32), random.standard_normal(count, np.float32)


def _torch_peak() -> int:
    import torch

    from benchmarks.about import process_peak

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process_peak()


if __name__ == "__main__":
    main(*sys.argv[1:])
