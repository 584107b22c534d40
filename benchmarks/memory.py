"""Peak memory of single tasks, each in a new process.

`python -m benchmarks.memory specjax|torch TASK ROWS SEEDS PRESET DTYPE` runs one task and prints its time and
its peak memory: of the device if that is counted, otherwise of the process with its imports (on both sides
those of JAX).
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import processes
from benchmarks.timing import OURS, Row
from specjax.typing import Float32Array

Call = Callable[[], Any]


def rows(preset: str, dtype: str, *, quick: bool) -> Iterator[Row]:
    """Measure embedding, LoRA1 steps and LoRA4 runs, and the same in PyTorch where it is installed."""
    from benchmarks.comparison import LOOP, missing_packages

    tasks = [("embedding", 8 if quick else 64, 1), ("LoRA1 step", 2, 1), ("LoRA1 step", 2, 4)]
    tasks += [("LoRA4 run", 60, seeds) for seeds in ((1, 16) if quick else (1, 16, 256))]
    for task, count, seeds in tasks:
        sides = {OURS: "specjax"} | ({LOOP: "torch"} if seeds == 1 and not missing_packages() else {})
        found = {name: _measure(side, task, count, seeds, preset, dtype) for name, side in sides.items()}
        what = f"{task}, {count} {'stars' if task == 'LoRA4 run' else 'spectra'}, {preset}, seeds: {seeds}"
        yield Row(
            section="g", what=what, count=seeds, unit="seeds",
            times={name: [each["seconds"]] for name, each in found.items()},
            memory={name: each["peak"] for name, each in found.items()},
        )  # fmt: skip


def _measure(*arguments: object) -> dict[str, float]:
    out = processes.run([sys.executable, "-m", "benchmarks.memory", *arguments]).out
    measured: dict[str, float] = json.loads(out.splitlines()[-1])
    return measured


def main(side: str, task: str, count: str, seeds: str, preset: str, dtype: str) -> None:
    """Run a task twice; print the seconds of the second run and the peak memory as JSON."""
    from benchmarks.environment import peak_memory
    from benchmarks.timing import seconds

    make = _in_specjax if side == "specjax" else _in_torch
    call = make(task, int(count), int(seeds), preset, dtype)
    seconds(call)
    measured = {"seconds": seconds(call), "peak": peak_memory() if side == "specjax" else _torch_peak()}
    print(json.dumps(measured))


def _in_specjax(task: str, count: int, seeds: int, preset: str, dtype: str) -> Call:
    from benchmarks import in_specjax
    from specjax.config import get_preset

    model = in_specjax.random_model(get_preset(preset), dtype)
    if task == "embedding":
        flux = in_specjax.random_spectra(model.config.specformer.num_pixels, count)
        return lambda: model.embed(flux)
    if task == "LoRA1 step":
        return in_specjax.masked_modelling(model, in_specjax.random_tokens(model, count), seeds).call(seeds)
    return in_specjax.head_run(model, *_features(model.config.projection.dim, count), 80).call(seeds)


def _in_torch(task: str, count: int, seeds: int, preset: str, dtype: str) -> Call:
    from benchmarks.in_torch import TorchSide
    from specjax.config import get_preset

    config = get_preset(preset)
    side, shape, random = (
        TorchSide(config, half=dtype == "bfloat16"),
        config.specformer,
        np.random.default_rng(0),
    )
    if task == "embedding":
        return side.embed("projected", random.standard_normal((count, shape.num_pixels), np.float32))
    if task == "LoRA1 step":
        tokens = random.standard_normal((count, shape.num_tokens, shape.token_dim), np.float32)
        return side.masked_modelling(tokens, random.random(tokens.shape[:2]) < 0.5).loop(seeds)
    return side.head_run(*_features(config.projection.dim, count), 80).loop(seeds)


def _features(width: int, count: int) -> tuple[Float32Array, Float32Array]:
    random = np.random.default_rng(0)
    return random.standard_normal((count, width), np.float32), random.standard_normal(count, np.float32)


def _torch_peak() -> int:
    import torch

    from benchmarks.environment import process_peak

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process_peak()


if __name__ == "__main__":
    main(*sys.argv[1:])
