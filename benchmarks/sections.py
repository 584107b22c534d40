"""The sections of the table, each a generator of rows."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import cold, flop_counts, in_specjax, memory
from benchmarks.comparison import Comparison
from benchmarks.options import Options
from benchmarks.timing import Call, Row, time_alternating
from specjax.config import get_preset
from specjax.train.losses import chunk_mask
from specjax.typing import BoolArray, Float32Array

HEAD_STARS, HEAD_STEPS = 60, 80

Curves = dict[str, dict[str, list[tuple[int, float]]]]


class Bench:
    """The model, the PyTorch side, and one method per section, named by its letter."""

    def __init__(self, options: Options) -> None:
        """Make the model and, if wanted, the PyTorch side."""
        self.options = options
        self.accelerated = jax.default_backend() != "cpu"
        self.dtype = options.dtype or ("bfloat16" if self.accelerated else "float32")
        self.config = get_preset(options.preset)
        self.model = in_specjax.random_model(self.config, self.dtype)
        tower = {"gaia_xp": {"backbone": self.model.params["gaia_xp"]["backbone"]}}
        self.bare = dataclasses.replace(self.model, variables={"params": tower})
        self.comparison = Comparison(options, self.config, self.dtype)
        # for the plot: {"spectra" or "seeds": {curve: [(number, seconds)]}}
        self.curves: Curves = {"spectra": {}, "seeds": {}}

    def a(self) -> Iterator[Row]:
        """Embed spectra."""
        config, rows = self.config, self._size(1024, 16, 8)
        tower = flop_counts.lamost_tower(config.specformer)
        projected = tower + flop_counts.lamost_projection(config)
        pixels, samples = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
        for name, embed, flops, flux in (
            ("lamost", self.model.mean_token, tower, in_specjax.random_spectra(pixels, rows)),
            ("projected", self.model.embed, projected, in_specjax.random_spectra(pixels, rows)),
            (
                "gaia_xp",
                self._xp,
                flop_counts.xp_tower(config),
                in_specjax.random_spectra(samples, 8 * rows),
            ),
        ):
            count = len(flux)
            others = self.comparison.calls("embed", name, flux, compile_too=name == "lamost")
            what = f"embed {count} spectra, {name}"
            call = functools.partial(embed, flux)
            yield self._row("a", what, call, others, count, "spectra", flops * count)
        yield from self._spectra_curve()

    def _xp(self, flux: Float32Array) -> Any:
        """Run the bare encoder, as the PyTorch side does; `embed` of the whole model would project."""
        return self.bare.embed(flux, "gaia_xp")

    def _spectra_curve(self) -> Iterator[Row]:
        config = get_preset("mini")
        mini = in_specjax.random_model(config, self.dtype)
        flops = flop_counts.lamost_tower(config.specformer) + flop_counts.lamost_projection(config)
        for count in (64, 256, 1024) if self.options.quick else (64, 256, 1024, 4096):
            flux = in_specjax.random_spectra(config.specformer.num_pixels, count)
            call = functools.partial(mini.embed, flux)
            row = self._row("a", f"embed {count} spectra, mini", call, None, count, "spectra", flops * count)
            self._add_point("spectra", "embedding, mini", row)
            yield row

    def b(self) -> Iterator[Row]:
        """Train single steps of LoRA1, of LoRA1 and LoRA2 together, and of LoRA3."""
        tower, batch = flop_counts.lamost_tower(self.config.specformer), self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        steps = in_specjax.MaskedModelling(self.model, tokens)
        hidden = self._hidden(batch)
        for seeds in (1, 2 if self.options.quick else self._size(32, 4, 2)):
            others = self.comparison.calls("masked_modelling", tokens, hidden, seeds, compile_too=seeds == 1)
            what = f"LoRA1 step, {batch} spectra, {_seeds(seeds)}"
            flops = 2 * tower * batch * seeds
            row = self._row("b", what, steps.call(seeds), others, seeds, "steps", flops)
            self._add_point("seeds", f"LoRA1 step of {batch} spectra", row)
            yield row
        labels = np.random.default_rng(2).standard_normal(batch, np.float32)
        together = in_specjax.Joint(self.model, tokens, labels)
        for seeds in (1, 2 if self.options.quick else self._size(32, 4, 2)):
            others = self.comparison.calls("joint", tokens, labels, seeds, compile_too=seeds == 1)
            what = f"LoRA1+LoRA2 step, {batch} spectra, {_seeds(seeds)}"
            flops = 2 * tower * batch * seeds
            yield self._row("b", what, together.call(seeds), others, seeds, "steps", flops)
        yield from self._contrastive(64)

    def _contrastive(self, batch: int) -> Iterator[Row]:
        random, tower = np.random.default_rng(0), self.config.specformer
        tokens = random.standard_normal((batch, tower.num_tokens, tower.dim), np.float32)
        z_xp = random.standard_normal((batch, self.config.projection.dim), np.float32)
        steps = in_specjax.Contrastive(self.model, jax.numpy.asarray(tokens), jax.numpy.asarray(z_xp))
        once, each = flop_counts.mixing(self.config), 2 * flop_counts.after_mixing(self.config)
        for seeds in (1, 4) if self.options.quick else (1, 4, 16):
            others = self.comparison.calls("contrastive", tokens, z_xp, seeds)
            what = f"LoRA3 step, {batch} spectra, cached tokens, {_seeds(seeds)}"
            flops = batch * (once + each * seeds)
            row = self._row("b", what, steps.call(seeds), others, seeds, "steps", flops)
            self._add_point("seeds", f"LoRA3 step of {batch} spectra", row)
            yield row

    def c(self) -> Iterator[Row]:
        """Train LoRA4 on cached features; LoRA2 is the same on the mean token."""
        random, width = np.random.default_rng(0), self.config.projection.dim
        features = random.standard_normal((HEAD_STARS, width), np.float32)
        labels = random.standard_normal(HEAD_STARS, np.float32)
        run = in_specjax.HeadRun(self.model, features, labels, HEAD_STEPS)
        flops = flop_counts.head_run(self.config, width, HEAD_STARS, HEAD_STEPS)
        for seeds in (1, 4, 16) if self.options.quick else (1, 4, 16, 64, 256):
            # PyTorch trains seeds one by one, so its time beyond 16 seeds follows from that of 16.
            others = None
            if seeds <= 16:
                others = self.comparison.calls("head_run", features, labels, seeds, HEAD_STEPS)
            what = f"LoRA4 run, {HEAD_STARS} stars, {HEAD_STEPS} steps, {_seeds(seeds)}"
            repeats = 1 if seeds > 64 and not self.accelerated else None
            row = self._row(
                "c", what, run.call(seeds), others, seeds, "seeds", flops * seeds, repeats=repeats
            )
            self._add_point("seeds", "LoRA4 run", row)
            self._add_point("seeds", "LoRA4 run, with compilation", row, row.first)
            yield row

    def d(self) -> Iterator[Row]:
        """Make the whole table, from spectra on the grid to predictions."""
        preset = self.options.table_preset or ("paper" if self.accelerated else "mini")
        model = in_specjax.random_model(get_preset(preset), self.dtype)
        seeds = 4 if self.options.quick else self._size(32, 16, 4)
        what = f"six configurations, {preset}, {_seeds(seeds)}"
        call = in_specjax.whole_table(model, seeds)
        note = "target: under 60 s" if self.accelerated and preset == "paper" else ""
        yield self._row("d", what, call, None, seeds, "seeds", repeats=1, note=note)

    def e(self) -> Iterator[Row]:
        """Train one step of the whole encoder."""
        batch = self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        call = in_specjax.MaskedModelling(self.model, tokens, full=True).call(1)
        others = self.comparison.calls("masked_modelling", tokens, self._hidden(batch), 1, full=True)
        flops = 3 * flop_counts.lamost_tower(self.config.specformer) * batch
        what = f"full step of the LAMOST encoder, {batch} spectra"
        yield self._row("e", what, call, others, 1, "steps", flops)

    def f(self) -> Iterator[Row]:
        """Time new processes."""
        yield from cold.compile_rows(self.options.preset, self.dtype)
        yield from cold.predict_rows(1 if self.options.quick else 3)

    def g(self) -> Iterator[Row]:
        """Measure the peak memory of single tasks, each in a new process."""
        yield from memory.rows(self.options.preset, self.dtype, quick=self.options.quick)

    def _size(self, accelerated: int, full: int, quick: int) -> int:
        if self.accelerated:
            return accelerated
        return quick if self.options.quick else full

    def _hidden(self, batch: int) -> BoolArray:
        return np.array(chunk_mask(jax.random.key(0), batch, self.config.specformer))

    def _add_point(self, against: str, curve: str, row: Row, seconds: float | None = None) -> None:
        self.curves[against].setdefault(curve, []).append((row.count, seconds or row.median()))

    def _row(
        self,
        section: str,
        what: str,
        call: Call,
        others: tuple[dict[str, Call], str] | None,
        count: int,
        unit: str,
        flops: float = float("nan"),
        *,
        repeats: int | None = None,
        note: str = "",
    ) -> Row:
        """Time a call of specjax in alternation with the output of `Comparison.calls`."""
        torch_calls, remark = others or ({}, "")
        repeats = repeats or (2 if self.options.quick else self.options.repeats)
        limit = 10 if self.options.quick else 40
        times, first = time_alternating({"specjax": call, **torch_calls}, repeats=repeats, limit=limit)
        return Row(
            section=section, what=what, count=count, unit=unit, times=times, flops=flops, first=first,
            note=note or remark,
        )  # fmt: skip


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
