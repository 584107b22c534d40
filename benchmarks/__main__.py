"""Time specjax against PyTorch on the device that JAX finds, and print one table per section.

    python -m benchmarks [--quick | --full] [--only a b] [--resume] [--markdown] [--out runs/bench.json]

Sections: (a) embedding, (b) LoRA steps, (c) whole LoRA4 runs on cached features, (d) the table of six
configurations, (e) a step of full fine-tuning, (f) new processes, (g) peak memory of single tasks, (h)
prediction of a survey against the compiled core alone, (i) cost against the number of spectra and (j) of
seeds, (k) preprocessing and the host side. On an accelerator, both sides' towers compute in bfloat16.
All sides alternate on the same inputs with the same weights, and medians are compared. Spectra and weights
are random, which does not affect the times. The JSON file is rewritten after every row; an interrupted run is
continued with --resume, which keeps its finished sections.
"""

import dataclasses
import os
from typing import Any

import tyro

from benchmarks import report, results
from benchmarks.environment import describe, load_average
from benchmarks.options import Options
from benchmarks.sections import Bench
from benchmarks.timing import measure_device
from specjax.progress import say

NOT_COMPARED = ("only", "resume", "markdown", "out")
"""Options that do not affect what is measured."""


def main(options: Options) -> None:
    """Run the sections, write the results and print the tables."""
    # PyTorch uses the same device, so JAX must not reserve all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    settings = {
        name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_COMPARED
    }
    sections = results.kept(options.out, settings, options.only) if options.resume else {}
    bench = Bench(options)
    todo = [letter for letter in options.only or report.HEADINGS if letter not in sections]
    if todo:
        say("measuring the peaks of the device")
        peaks = measure_device(bench.dtype)
    for letter in todo:
        say(f"section {letter}: {report.HEADINGS[letter]}")
        load = load_average()
        section = results.Section(environment={}, options=settings, peaks=peaks)
        sections[letter] = section
        for row in getattr(bench, letter)():
            section.rows.append(row)
            section.environment = _about(bench.dtype, load)
            say(report.one_line(row))
            results.write(options.out, sections)
        section.finished = True
        results.write(options.out, sections)
        report.plot(options.out.with_suffix(".png"), sections, section.environment["device"])
    if options.markdown:
        print(report.markdown(sections))
    else:
        report.print_tables(sections)
    say(f"wrote {options.out}")


def _about(dtype: str, load: float) -> dict[str, Any]:
    return describe(dtype) | {"load": [load, load_average()]}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
