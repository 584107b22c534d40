"""Time spent by new processes: compilation, with and without the compilation cache, and whole commands.

`python -m benchmarks.cold PRESET DTYPE` times the first and second call of an embedding and of a LoRA1 step.
The functions of this module run it, and the command `specjax`, in new processes.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Row, run_process

SPECTRA = 1000
LABELLED = 120


def compile_rows(preset: str, dtype: str) -> Iterator[Row]:
    """Time the compilation of an embedding and of a LoRA1 step, without and with a compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("without cache", "with cache"):
            command = [sys.executable, "-m", "benchmarks.cold", preset, dtype]
            out = run_process(command, SPECJAX_CACHE=folder)[1]
            measured = json.loads(out.splitlines()[-1])
            for what, (first, second) in measured["seconds"].items():
                note = f"peak memory of the process {measured['peak'] / 2**30:.1f} GiB"
                name = f"compile {what}, {preset}, {kind}"
                times = {"specjax": [first - second]}
                yield Row(section="f", what=name, count=1, unit="program", times=times, note=note)


def predict_rows(repeats: int) -> Iterator[Row]:
    """Time the commands `specjax adapt` and `specjax predict`, on a thousand spectra, with the mini model."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_inputs(root)
        inputs = ["--spectra", root / "few.npz", "--labels", root / "labels.csv"]
        adapt = ["adapt", *inputs, "--out", root / "run"]
        what = f"specjax adapt, {LABELLED} spectra, mini, lora4 of 16 seeds, empty cache"
        times = {"specjax": [_specjax(adapt, folder)]}
        yield Row(section="f", what=what, count=16, unit="seeds", times=times)
        adapter = next((root / "run" / "adapters").glob("*/*"))
        predict = ["predict", root / "many.npz", "--adapter", adapter, "-o", root / "labels.ecsv"]
        what = f"specjax predict, {SPECTRA} spectra, mini, lora4 of 16 seeds"
        common: dict[str, Any] = {"section": "f", "count": SPECTRA, "unit": "spectra"}
        yield Row(**common, what=f"{what}, first", times={"specjax": [_specjax(predict, folder)]})
        warm = {"specjax": [_specjax(predict, folder) for _ in range(repeats)]}
        yield Row(**common, what=f"{what}, warm cache", times=warm, note="target: under 10 s")


def _specjax(arguments: Sequence[object], cache: str) -> float:
    return run_process([sys.executable, "-m", "specjax", *arguments], SPECJAX_CACHE=cache)[0]


def _write_inputs(root: Path) -> None:
    """Write spectra that pass the quality checks: a sloped continuum with lines of random depth."""
    random = np.random.default_rng(0)
    wavelength = np.arange(3800.0, 7000.0, 1.0)
    centres, widths = random.uniform(3900, 6900, 60), random.uniform(2, 6, 60)
    lines = np.exp(-0.5 * ((wavelength - centres[:, None]) / widths[:, None]) ** 2)
    metallicity = random.uniform(-1.5, 0.3, SPECTRA)
    depth = random.uniform(0.1, 0.5, 60) * 10 ** (0.3 * metallicity[:, None])
    continuum = 1 + 0.2 * (wavelength - 5000) / 1000
    flux = continuum * (1 - np.clip(depth @ lines, 0, 0.9)) + random.normal(
        0, 0.01, (SPECTRA, len(wavelength))
    )
    ivar = np.full(flux.shape, 1e4)
    ids = np.array([f"star{k}" for k in range(SPECTRA)])
    for name, rows in (("many", slice(None)), ("few", slice(LABELLED))):
        np.savez(
            root / f"{name}.npz",
            wavelength=wavelength, flux=flux[rows], ivar=ivar[rows], id=ids[rows], wavelength_medium="vacuum",
        )  # fmt: skip
    table = [f"{star},{value:.3f}" for star, value in zip(ids[:LABELLED], metallicity, strict=False)]
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
    step = in_specjax.MaskedModelling(model, in_specjax.random_tokens(model, 2)).call(1)
    calls = {"embedding": lambda: model.embed(flux), "LoRA1 step": step}
    measured = {name: (seconds(call), seconds(call)) for name, call in calls.items()}
    print(json.dumps({"seconds": measured, "peak": process_peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
