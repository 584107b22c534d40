"""Time spent by new processes: compilation and the first result, with an empty and a filled cache.

`python -m benchmarks.cold PRESET DTYPE` times the first and second call of an embedding and of a LoRA1 step.
The functions of this module run it, and the command `specjax`, in new processes.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import names, processes
from benchmarks.targets import FEW_SPECTRA, SEEDS
from benchmarks.timing import OURS, Row

LABELLED = 120
OTHER_LABELLED, OTHER_SEEDS = 100, 8


def compile_rows(preset: str, dtype: str, repeats: int) -> Iterator[Row]:
    """Time the compilation of an embedding and of a LoRA1 step, without and with a compilation cache."""
    measured: dict[tuple[str, str], list[float]] = {}
    memory = 0.0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("empty cache", "filled cache"):
                command = [sys.executable, "-m", "benchmarks.cold", preset, dtype]
                out = json.loads(processes.run(command, SPECJAX_CACHE=folder).out.splitlines()[-1])
                memory = max(memory, out["peak"])
                for what, (first, second) in out["seconds"].items():
                    measured.setdefault((what, kind), []).append(first - second)
    for (what, kind), times in measured.items():
        name = f"compile {what}, {preset}, {kind}"
        yield _row(name, times, 1, "program", memory={OURS: memory})


def command_rows(repeats: int, *, seeds: int = SEEDS, spectra: int = FEW_SPECTRA) -> Iterator[Row]:
    """Time `specjax adapt` and `specjax predict` with the mini model, with empty and filled caches.

    The second adaptation has another number of stars and of seeds, and shows what is compiled again.
    """
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name), Path(name) / "cache"
        write_inputs(root, spectra)
        sizes = {"first": (LABELLED, seeds), "second": (OTHER_LABELLED, max(seeds // 2, 1))}
        for which, (stars, count) in sizes.items():
            command = ["adapt", "--spectra", root / f"{stars}.npz", "--labels", root / "labels.csv"]
            command += ["--seeds", count, "--out", root / which]
            done = processes.run(
                [sys.executable, "-m", "benchmarks.compilations", *command], SPECJAX_CACHE=str(cache)
            )
            kept = "empty" if which == "first" else "filled"
            what = f"specjax adapt, {stars} spectra, mini, lora4 of {names.seeds(count)}, {kept} cache"
            yield _row(what, [done.seconds], count, "seeds")
            compiled = json.loads(done.out.splitlines()[-1])
            if which == "second":
                note = f"{compiled['programs']} programs, {compiled['all']:.1f} s together"
                longest = [compiled["longest"]]
                yield _row(names.LONGEST_COMPILATION, longest, 1, "program", note=note)
        adapter = next((root / "first" / "adapters").glob("*/*"))
        yield from _predict_rows(root, adapter, 1, seeds, repeats)
        yield from _predict_rows(root, adapter, spectra, seeds, repeats)


def _predict_rows(root: Path, adapter: Path, spectra: int, seeds: int, repeats: int) -> Iterator[Row]:
    """Time `specjax predict`, alternating between a new cache and the same again."""
    times: dict[str, list[float]] = {"empty": [], "filled": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for measured in times.values():
                arguments = [root / f"{spectra}.npz", "--adapter", adapter, "-o", root / "labels.ecsv"]
                measured.append(processes.specjax("predict", *arguments, cache=Path(cache)).seconds)
    for kind, measured in times.items():
        what = names.predict_process(spectra, kind, seeds)
        yield _row(what, measured, spectra, "spectra")


def _row(what: str, times: list[float], count: int, unit: str, **more: Any) -> Row:
    return Row(section="f", what=what, count=count, unit=unit, times={OURS: times}, **more)


def write_inputs(root: Path, spectra: int) -> None:
    """Write files of raw spectra named after their number, and labels of the first ones."""
    # Not at the top: `main` measures the peak memory of the process, without the readers.
    from benchmarks.survey_files import lined

    whole = lined(max(spectra, LABELLED))
    ids = np.array([f"star{k}" for k in range(len(whole))])
    for count in {1, OTHER_LABELLED, LABELLED, spectra}:
        np.savez(
            root / f"{count}.npz",
            wavelength=whole.wavelength, flux=whole.flux[:count], ivar=whole.ivar[:count],
            mask=whole.mask[:count], id=ids[:count], wavelength_medium="vacuum",
        )  # fmt: skip
    metallicity = np.random.default_rng(0).uniform(-1.5, 0.3, LABELLED)
    table = [f"{star},{value:.3f}" for star, value in zip(ids, metallicity, strict=False)]
    (root / "labels.csv").write_text("\n".join(["id,fe_h", *table]) + "\n")


def main(preset: str, dtype: str) -> None:
    """Print the times of the first and second calls, and the peak memory, as JSON."""
    from specjax.cache import use_compilation_cache

    use_compilation_cache()
    from benchmarks import in_specjax
    from benchmarks.environment import process_peak
    from benchmarks.timing import seconds
    from specjax.config import get_preset

    model = in_specjax.random_model(get_preset(preset), dtype)
    flux = in_specjax.random_spectra(model.config.specformer.num_pixels, 8)
    step = in_specjax.masked_modelling(model, in_specjax.random_tokens(model, 2)).call(1)
    calls = {"embedding": lambda: model.embed(flux), "LoRA1 step": step}
    measured = {name: (seconds(call), seconds(call)) for name, call in calls.items()}
    print(json.dumps({"seconds": measured, "peak": process_peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
