"""Measure specjax on the device that JAX finds, beside PyTorch, and print one table.

    python -m benchmarks [--quick] [--only a b] [--markdown] [--out runs/bench.json]

Sections: (a) embedding, (b) LoRA1 and LoRA3 steps, (c) whole LoRA4 runs on cached features, (d) the table of
six configurations, (e) a step of full fine-tuning, (f) compiling and `specjax predict` from a cold process,
(g) peak memory. On an accelerator matrix products are in bfloat16 on both sides. Both sides run in turns on
the same inputs and medians are compared. Spectra and weights are random: no time depends on them. The JSON is
written after every line, so that a run that is interrupted loses none.
"""

import os

import tyro

from benchmarks import report
from benchmarks.about import describe
from benchmarks.options import Options
from benchmarks.sections import Bench
from benchmarks.timing import Row, Yardstick, measure_device
from specjax.progress import say


def main(options: Options) -> None:
    """Measure, write, print."""
    # PyTorch works on the same device: leave it the memory that is not in use.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    bench = Bench(options)
    yardstick: Yardstick = measure_device(bench.dtype)
    rows: list[Row] = []
    for section in options.only or "abcdefg":
        for row in getattr(bench, section)():
            rows.append(row)
            say(report.one_line(row))
            report.write_json(options.out, rows, describe(bench.dtype), yardstick)
        report.plot_curves(options.out.with_suffix(".png"), bench.curves, describe(bench.dtype)["device"])
    about = describe(bench.dtype)
    if options.markdown:
        print(report.markdown(rows, about, yardstick))
    else:
        report.print_table(rows, about, yardstick)
    say(f"written: {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
