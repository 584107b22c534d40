"""Time and peak memory of converting a PyTorch file, against torch.load and saving the same arrays.

    python -m benchmarks.converter --out runs/converter.json

The two sides alternate, each run in a new process that starts the clock after its imports, and medians are
compared. Without --source, a SpecCLIP "pr" file of the published size (674 MB, random weights) is written
first. Unlike the other side, `convert` also checks, transposes, hashes and flushes to disk. Needs torch.
"""

import dataclasses
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro

from checkpoints_convert.export import encoder_hyper_parameters
from checkpoints_convert.keys import table
from specjax.config import get_preset

# Prints a JSON line: wall time (s), CPU time (s) and peak resident memory (bytes).
_CLOCK = """
import json, resource, sys, time
source, out = sys.argv[1:]
{imports}
before, cpu = time.perf_counter(), time.process_time()
{work}
wall, cpu = time.perf_counter() - before, time.process_time() - cpu
if sys.platform == "linux":  # where getrusage includes the memory of the parent
    peak = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"wall": wall, "cpu": cpu, "peak": peak}}))
"""
_SIDES = {
    "convert": _CLOCK.format(
        imports="from checkpoints_convert import convert",
        work="convert(source, out)",
    ),
    "torch": _CLOCK.format(
        imports="import torch; from safetensors.torch import save_file",
        work="save_file(torch.load(source, weights_only=True)['state_dict'], out)",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    source: Path | None = None
    """PyTorch file that weights_only=True reads; by default one of the published size is made."""
    repeats: int = 7
    """Number of runs of each side, of which the median is taken."""
    out: Path | None = None
    """JSON file to write."""


def main(options: Options) -> None:
    """Run both sides in alternation, print and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or make_published_file(Path(folder) / "pr.ckpt")
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in _SIDES}
        for turn in range(options.repeats + 1):
            for name in _SIDES:
                measured = run_side(name, source, Path(folder) / f"{name}_{turn}")
                if turn:  # the first run fills the page cache
                    turns[name].append(measured)
        size = source.stat().st_size
    results = compare(turns, size)
    print_results(results, size, options.repeats)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({"bytes": size, "summary": results, "turns": turns}, indent=2) + "\n"
        )


def run_side(name: str, source: Path, out: Path) -> dict[str, float]:
    """Run one side in a new process and remove its output."""
    command = [sys.executable, "-c", _SIDES[name], str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def compare(turns: dict[str, list[dict[str, float]]], size: int) -> dict[str, dict[str, float]]:
    """Return medians by side; ratios are taken within a turn, in which both sides met the same load."""
    results = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak")}
        for name, runs in turns.items()
    }
    ratios = [ours["wall"] / theirs["wall"] for ours, theirs in zip(*turns.values(), strict=True)]
    results["convert"] |= {
        "wall_ratio": statistics.median(ratios),
        "wall_ratio_min": min(ratios),
        "wall_ratio_max": max(ratios),
    }
    for side in results.values():
        side["peak_of_file"] = side["peak"] / size
    return results


def print_results(results: dict[str, dict[str, float]], size: int, repeats: int) -> None:
    """Print both sides and their ratio."""
    print(f"{size / 1e6:.1f} MB, medians of {repeats} runs")
    print(f"{'':36s}{'wall s':>8s}{'CPU s':>8s}{'peak MB':>9s}{'of file':>9s}")
    titles = {"convert": "checkpoints_convert.convert", "torch": "torch.load, safetensors save_file"}
    for name, side in results.items():
        peak = f"{side['peak'] / 1e6:9.0f}{side['peak_of_file']:9.2f}"
        print(f"{titles[name]:36s}{side['wall']:8.2f}{side['cpu']:8.2f}{peak}")
    ours = results["convert"]
    spread = f"{ours['wall_ratio_min']:.2f} to {ours['wall_ratio_max']:.2f}"
    print(f"ratio of wall times: {ours['wall_ratio']:.2f} ({spread})")


def make_published_file(path: Path) -> Path:
    """Write a SpecCLIP "pr" file of the published size, with its hyperparameters."""
    config = get_preset("paper")
    random = np.random.default_rng(0)
    state = {row.key: random.random(row.shape, np.float32) for row in table(config, ["specclip"])}
    encoder = {"backbone": encoder_hyper_parameters(config.specformer)}
    torch = importlib.import_module("torch")
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    torch.save({"state_dict": tensors, "hyper_parameters": {"lamost_lrs_encoder": encoder}}, path)
    return path


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
