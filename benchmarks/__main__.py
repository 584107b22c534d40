"""Time specjax against PyTorch on the device that JAX finds, and print one table.

    python -m benchmarks [--quick] [--only a b] [--markdown] [--out runs/bench.json]

Sections: (a) embedding, (b) LoRA1 and LoRA3 steps, (c) whole LoRA4 runs on cached features, (d) the table of
six configurations, (e) a step of full fine-tuning, (f) compilation and `specjax predict` in a new process,
(g) peak memory. On an accelerator, matrix products are in bfloat16 on both sides. Both sides alternate on the
same inputs, and medians are compared. Spectra and weights are random, which does not affect the times.
The JSON file is rewritten after every row, so that an interrupted run keeps its results.
"""

import os

import tyro

from benchmarks import report
from benchmarks.environment import describe
from benchmarks.options import Options
from benchmarks.sections import Bench
from benchmarks.timing import Row, measure_device
from specjax.progress import say


def main(options: Options) -> None:
    """Run the sections, write the results and print the table."""
    # PyTorch uses the same device, so JAX must not reserve all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    bench = Bench(options)
    peaks = measure_device(bench.dtype)
    rows: list[Row] = []
    for section in options.only or "abcdefg":
        for row in getattr(bench, section)():
            rows.append(row)
            say(report.one_line(row))
            report.write_json(options.out, rows, describe(bench.dtype), peaks)
        report.plot_curves(options.out.with_suffix(".png"), bench.curves, describe(bench.dtype)["device"])
    environment = describe(bench.dtype)
    if options.markdown:
        print(report.markdown(rows, environment, peaks))
    else:
        report.print_table(rows, environment, peaks)
    say(f"wrote {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
