"""Time and peak memory of converting a PyTorch file, against torch.load and saving the same arrays.

    python -m benchmarks.converter --out runs/converter.json

Both sides run in turns, each time in a process of its own that has imported what it needs before the clock
starts, and medians are compared. Without --source a SpecCLIP "pr" file of the published size (674 MB, random
weights) is written first. `convert` also checks, transposes, hashes and flushes to disk, the other side does
not. Needs torch.
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

# Each prints a JSON line: wall seconds, CPU seconds and peak resident memory (bytes) of the work.
_CLOCK = """
import json, resource, sys, time
source, out = sys.argv[1:]
{imports}
before, cpu = time.perf_counter(), time.process_time()
{work}
wall, cpu = time.perf_counter() - before, time.process_time() - cpu
if sys.platform == "linux":  # where getrusage counts the parent's memory too
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
    """A PyTorch file that weights_only=True reads; by default one of the published size is made."""
    repeats: int = 7
    """Turns, of which the median is taken."""
    out: Path | None = None
    """JSON to write."""


def main(options: Options) -> None:
    """Measure in turns, print, write."""
    with tempfile.TemporaryDirectory() as place:
        source = options.source or make_published_file(Path(place) / "pr.ckpt")
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in _SIDES}
        for turn in range(options.repeats + 1):
            for name in _SIDES:
                measured = run_side(name, source, Path(place) / f"{name}_{turn}")
                if turn:  # the first fills the page cache
                    turns[name].append(measured)
        size = source.stat().st_size
    summary = summarise(turns, size)
    print_summary(summary, size, options.repeats)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({"bytes": size, "summary": summary, "turns": turns}, indent=2) + "\n"
        )


def run_side(name: str, source: Path, out: Path) -> dict[str, float]:
    """Run one side in a process of its own and drop what it wrote."""
    command = [sys.executable, "-c", _SIDES[name], str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return json.loads(done.stdout)


def summarise(turns: dict[str, list[dict[str, float]]], size: int) -> dict[str, dict[str, float]]:
    """Medians over the turns; ratios of a turn are taken within it, since both sides met the same load."""
    summary = {
        name: {key: statistics.median(turn[key] for turn in sides) for key in ("wall", "cpu", "peak")}
        for name, sides in turns.items()
    }
    ratios = [ours["wall"] / theirs["wall"] for ours, theirs in zip(*turns.values(), strict=True)]
    summary["convert"] |= {
        "wall_ratio": statistics.median(ratios),
        "wall_ratio_min": min(ratios),
        "wall_ratio_max": max(ratios),
    }
    for side in summary.values():
        side["peak_of_file"] = side["peak"] / size
    return summary


def print_summary(summary: dict[str, dict[str, float]], size: int, repeats: int) -> None:
    """Print both sides and their ratio."""
    print(f"{size / 1e6:.1f} MB, medians of {repeats} turns")
    print(f"{'':36s}{'wall s':>8s}{'CPU s':>8s}{'peak MB':>9s}{'of file':>9s}")
    titles = {"convert": "checkpoints_convert.convert", "torch": "torch.load, safetensors save_file"}
    for name, side in summary.items():
        peak = f"{side['peak'] / 1e6:9.0f}{side['peak_of_file']:9.2f}"
        print(f"{titles[name]:36s}{side['wall']:8.2f}{side['cpu']:8.2f}{peak}")
    ours = summary["convert"]
    spread = f"{ours['wall_ratio_min']:.2f} to {ours['wall_ratio_max']:.2f}"
    print(f"wall time, ratio within a turn: {ours['wall_ratio']:.2f} ({spread})")


def make_published_file(path: Path) -> Path:
    """Write a SpecCLIP "pr" file of the published size, and of which heads attention has."""
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
