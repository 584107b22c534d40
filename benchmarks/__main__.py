"""Measure specjax on the device that JAX finds, beside PyTorch, and print one table.

    python -m benchmarks [--quick] [--only a b] [--markdown] [--out runs/bench.json]

Sections: (a) embedding, (b) LoRA1 and LoRA3 steps, (c) whole LoRA4 runs on cached features, (d) the table of
six configurations, (e) a step of full fine-tuning, (f) compiling and `specjax predict` from a cold process.
On an accelerator matrix products are in bfloat16 on both sides. Both sides run in turns on the same inputs
and medians are compared. Spectra and weights are random: no time depends on them.
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from benchmarks import cold, in_specjax, paper_floors, report
from benchmarks.in_torch import TorchSide, available
from benchmarks.timing import Call, Row, Yardstick, in_turns, measure_device
from specjax.config import get_preset

HEAD_STARS, HEAD_STEPS = 60, 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    preset: Literal["paper", "mini"] = "paper"
    """sizes of the model in a, b, c and e"""
    table_preset: Literal["paper", "mini"] | None = None
    """sizes of the model in d: those of the paper on an accelerator and mini on a CPU, if not said"""
    only: tuple[Literal["a", "b", "c", "d", "e", "f"], ...] = ()
    """sections to run; all of them if none is named"""
    quick: bool = False
    """smaller batches and fewer calls: for a look, not for a record"""
    repeats: int = 5
    """timed calls of each, of which the median is taken"""
    torch: bool = True
    """run PyTorch beside"""
    torch_compile: bool = True
    """and torch.compile, for an embedding and a LoRA1 step"""
    dtype: Literal["float32", "bfloat16"] | None = None
    """type of the matrix products; bfloat16 on an accelerator and float32 on a CPU, if not said"""
    markdown: bool = False
    """print Markdown"""
    out: Path = Path("runs/bench.json")
    """JSON to write; the plot goes beside it"""


class Bench:
    """The sections, each a generator of rows."""

    def __init__(self, options: Options) -> None:
        """Make the model and see who takes part."""
        self.options = options
        self.accelerated = jax.default_backend() != "cpu"
        self.dtype = options.dtype or ("bfloat16" if self.accelerated else "float32")
        self.config = get_preset(options.preset)
        self.model = in_specjax.random_model(self.config, self.dtype)
        tower = {"gaia_xp": {"backbone": self.model.params["gaia_xp"]["backbone"]}}
        self.bare = dataclasses.replace(self.model, variables={"params": tower})
        absent = available() if options.torch else "left out"
        self.torch = None if absent else TorchSide(self.config, half=self.dtype == "bfloat16")
        if absent:
            _say(f"PyTorch: {absent}")
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def a(self) -> Iterator[Row]:
        """Embed spectra."""
        config, rows = self.config, self._size(1024, 32, 8)
        tower = paper_floors.lamost_tower(config.specformer)
        projected = tower + paper_floors.lamost_projection(config)
        pixels, samples = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
        for name, embed, flops, flux in (
            ("lamost", self.model.mean_token, tower, in_specjax.random_spectra(pixels, rows)),
            ("projected", self.model.embed, projected, in_specjax.random_spectra(pixels, rows)),
            (
                "gaia_xp",
                self._xp,
                paper_floors.xp_tower(config),
                in_specjax.random_spectra(samples, 8 * rows),
            ),
        ):
            count = len(flux)
            calls: dict[str, Call] = {"specjax": functools.partial(embed, flux)}
            calls |= self._torch_calls("embed", name, flux, compile_too=name == "lamost")
            yield self._row("a", f"embed {count} spectra, {name}", calls, count, "spectra", flops * count)
        yield from self._spectra_curve()

    def _xp(self, flux: np.ndarray) -> Any:
        """Run the bare tower, as the PyTorch side does: `embed` would project."""
        return self.bare.embed(flux, "gaia_xp")

    def _spectra_curve(self) -> Iterator[Row]:
        mini = in_specjax.random_model(get_preset("mini"), self.dtype)
        points = []
        for count in (64, 256, 1024) if self.options.quick else (64, 256, 1024, 4096):
            flux = in_specjax.random_spectra(mini.config.specformer.num_pixels, count)
            flops = paper_floors.lamost_tower(mini.config.specformer) + paper_floors.lamost_projection(
                mini.config
            )
            calls: dict[str, Call] = {"specjax": functools.partial(mini.embed, flux)}
            row = self._row("a", f"embed {count} spectra, mini", calls, count, "spectra", flops * count)
            points.append((count, row.median()))
            yield row
        self.curves["spectra"] = points

    def b(self) -> Iterator[Row]:
        """Run LoRA1 and LoRA3 steps."""
        tower, batch = paper_floors.lamost_tower(self.config.specformer), self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        steps = in_specjax.MaskedModelling(self.model, tokens)
        hidden = self._hidden(batch)
        for seeds in (1, 2 if self.options.quick else self._size(32, 4, 2)):
            calls = {"specjax": steps.call(seeds)}
            calls |= self._torch_calls("masked_modelling", tokens, hidden, seeds, compile_too=seeds == 1)
            flops = 2 * tower * batch * seeds
            yield self._row(
                "b", f"LoRA1 step, {batch} spectra, {_seeds(seeds)}", calls, seeds, "steps", flops
            )
        yield from self._contrastive(64)

    def _contrastive(self, batch: int) -> Iterator[Row]:
        random, tower = np.random.default_rng(0), self.config.specformer
        tokens = random.standard_normal((batch, tower.num_tokens, tower.dim), np.float32)
        z_xp = random.standard_normal((batch, self.config.projection.dim), np.float32)
        steps = in_specjax.Contrastive(self.model, jax.numpy.asarray(tokens), jax.numpy.asarray(z_xp))
        for seeds in (1, 4 if self.options.quick else 16):
            calls = {"specjax": steps.call(seeds)} | self._torch_calls("contrastive", tokens, z_xp, seeds)
            flops = batch * seeds * (
                2 * paper_floors.after_mixing(self.config)
            ) + batch * paper_floors.mixing(self.config)
            what = f"LoRA3 step, {batch} spectra, cached tokens, {_seeds(seeds)}"
            yield self._row("b", what, calls, seeds, "steps", flops)

    def c(self) -> Iterator[Row]:
        """Run whole LoRA4 trainings on cached features; LoRA2 is the same on the mean token."""
        random, width = np.random.default_rng(0), self.config.projection.dim
        features = random.standard_normal((HEAD_STARS, width), np.float32)
        labels = random.standard_normal(HEAD_STARS, np.float32)
        run = in_specjax.HeadRun(self.model, features, labels, HEAD_STEPS)
        flops = paper_floors.head_run(self.config, width, HEAD_STARS, HEAD_STEPS)
        points = []
        for seeds in (1, 4, 16) if self.options.quick else (1, 4, 16, 64, 256):
            calls = {"specjax": run.call(seeds)}
            if seeds <= 16:  # one after the other: beyond that, what 16 take times so many
                calls |= self._torch_calls("head_run", features, labels, seeds, HEAD_STEPS)
            what = f"LoRA4 run, {HEAD_STARS} stars, {HEAD_STEPS} steps, {_seeds(seeds)}"
            row = self._row("c", what, calls, seeds, "seeds", flops * seeds)
            points.append((seeds, row.median()))
            yield row
        self.curves["seeds"] = points

    def d(self) -> Iterator[Row]:
        """Run the whole table, from spectra on the grid to predictions."""
        preset = self.options.table_preset or ("paper" if self.accelerated else "mini")
        model = in_specjax.random_model(get_preset(preset), self.dtype)
        seeds = 4 if self.options.quick else 16
        calls = {"specjax": in_specjax.whole_table(model, seeds)}
        yield self._row(
            "d", f"six configurations, {preset}, {_seeds(seeds)}", calls, seeds, "seeds", repeats=1
        )

    def e(self) -> Iterator[Row]:
        """Run a step that trains the whole encoder."""
        batch = self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        calls = {"specjax": in_specjax.MaskedModelling(self.model, tokens, full=True).call(1)}
        calls |= self._torch_calls("masked_modelling", tokens, self._hidden(batch), 1, full=True)
        flops = 3 * paper_floors.lamost_tower(self.config.specformer) * batch
        yield self._row("e", f"full step of the LAMOST encoder, {batch} spectra", calls, 1, "steps", flops)

    def f(self) -> Iterator[Row]:
        """Time cold processes."""
        yield from cold.compile_rows(self.options.preset, self.dtype)
        yield from cold.predict_rows(1 if self.options.quick else 3)

    def _size(self, accelerated: int, full: int, quick: int) -> int:
        if self.accelerated:
            return accelerated
        return quick if self.options.quick else full

    def _hidden(self, batch: int) -> np.ndarray:
        from specjax.train.losses import chunk_mask

        return np.array(chunk_mask(jax.random.key(0), batch, self.config.specformer))

    def _torch_calls(
        self, method: str, *arguments: Any, compile_too: bool = False, **options: Any
    ) -> dict[str, Call]:
        """Make the PyTorch calls of a method of `TorchSide`, if PyTorch takes part."""
        if self.torch is None:
            return {}
        make = getattr(self.torch, method)
        calls: dict[str, Call] = {"torch": make(*arguments, **options)}
        if compile_too and self.options.torch_compile and not self.options.quick:
            try:
                compiled = make(*arguments, **options, compile_it=True)
                compiled()
                calls["torch.compile"] = compiled
            except Exception as error:  # whatever its compiler raises; the table goes on without it
                _say(f"torch.compile does not work here: {str(error).splitlines()[0]}")
        return calls

    def _row(
        self,
        section: str,
        what: str,
        calls: dict[str, Call],
        count: int,
        unit: str,
        flops: float = float("nan"),
        repeats: int | None = None,
    ) -> Row:
        repeats = repeats or (2 if self.options.quick else self.options.repeats)
        times, first = in_turns(calls, repeats=repeats, limit=10 if self.options.quick else 40)
        row = Row(section=section, what=what, count=count, unit=unit, times=times, flops=flops, first=first)
        shown = ", ".join(f"{who} {row.median(who):.3g} s" for who in times)
        _say(f"{section}  {what}: {shown}")
        return row


def main(options: Options) -> None:
    """Measure, print, write."""
    # PyTorch works on the same device: leave it the memory that is not in use.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    bench = Bench(options)
    yardstick: Yardstick = measure_device(bench.dtype)
    rows = [row for section in options.only or "abcdef" for row in getattr(bench, section)()]
    about = describe(bench.dtype)
    if options.markdown:
        print(report.markdown(rows, about, yardstick))
    else:
        report.print_table(rows, about, yardstick)
    report.write_json(options.out, rows, about, yardstick)
    if bench.curves:
        report.plot_curves(options.out.with_suffix(".png"), bench.curves, about["device"])
    _say(f"written: {options.out}")


def describe(dtype: str) -> dict[str, Any]:
    """Return the device, versions, date and peak memory."""
    device = jax.devices()[0]
    names = ("jax", "flax", "torch", "peft")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "dtype": dtype,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions,
        "peak_memory": peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
