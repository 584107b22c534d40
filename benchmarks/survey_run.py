"""Rates of predicting a survey in a warm process, against the compiled core alone.

`python -m benchmarks.survey_run ADAPTER RAW PREPARED COUNT ROUNDS` alternates between `predict_survey` from
raw files, the same from a prepared file, and the core: the backbone and the heads of all seeds, compiled, on
flux that is in memory, on the grid and nowhere masked. It prints the seconds of all rounds as JSON. In a
process of its own, because the workers of `predict_survey` import the main module of the process.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CORE_ROWS = 32768
"""Spectra on which the core is timed at most; its time is proportional to their number."""


def main(adapter: str, raw: str, prepared: str, count: str, rounds: str) -> None:
    """Run all sides, print seconds and CPU seconds for `count` spectra by side."""
    from benchmarks.timing import time_alternating
    from specjax.cache import use_compilation_cache
    from specjax.pipeline import predict_survey

    use_compilation_cache()
    number = int(count)
    rows = min(number, CORE_ROWS)
    with TemporaryDirectory() as folder:

        def predict(source: str) -> Any:
            out = Path(folder) / "labels.fits"
            return predict_survey(model="mini", spectra=[Path(source)], adapter=Path(adapter), out=out)

        calls = {
            "specjax": core_call(Path(adapter), rows),
            "raw": lambda: predict(raw),
            "prepared": lambda: predict(prepared),
        }
        check(predict(prepared), number)
        timing = time_alternating(calls, repeats=int(rounds), limit=float("inf"))
    scale = number / rows
    seconds, cpu = timing.times, timing.cpu
    for measured in (seconds, cpu):
        measured["core"] = [scale * each for each in measured.pop("specjax")]
    print(json.dumps({"seconds": seconds, "cpu": cpu, "failures": timing.failures}))


def core_call(adapter: Path, rows: int) -> Any:
    """Make the call that runs the compiled core on some spectra, with the adapter's seeds."""
    import numpy as np

    from specjax.adapt.configuration import Configuration
    from specjax.adapt.forward import predict_label
    from specjax.checkpoints import load_adapter
    from specjax.foundation import load
    from specjax.foundation.inputs import pixel_count

    model = load("mini")
    stored = load_adapter(adapter, base=model.digest)
    heads, label = Configuration.parse(stored.config["configuration"]).heads, stored.config["label"]
    shape = (rows, pixel_count(model.config, "lamost"))
    flux = np.random.default_rng(0).normal(1.0, 0.05, shape).astype(np.float32)

    def call() -> Any:
        base = model.backbone_features(flux)
        return predict_label(model, heads, stored.arrays, flux, label, base)

    return call


def check(columns: Any, count: int) -> None:
    """Check that all spectra went through the model: those with a bad flag would cost nothing.

    Raises:
        RuntimeError: some have no label.
    """
    import numpy as np

    known = int(np.isfinite(columns["fe_h"]).sum())
    if known != count:
        raise RuntimeError(f"only {known} of {count} spectra have a label")


if __name__ == "__main__":
    main(*sys.argv[1:])
