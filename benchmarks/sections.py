"""The sections of the table, each a generator of lines."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import cold, in_specjax, memory, paper_floors
from benchmarks.beside import Beside
from benchmarks.options import Options
from benchmarks.timing import Call, Row, in_turns
from specjax.config import get_preset
from specjax.train.losses import chunk_mask

HEAD_STARS, HEAD_STEPS = 60, 80

Curves = dict[str, dict[str, list[tuple[int, float]]]]


class Bench:
    """The model, who runs beside, and a method a section."""

    def __init__(self, options: Options) -> None:
        """Make the model and see who takes part."""
        self.options = options
        self.accelerated = jax.default_backend() != "cpu"
        self.dtype = options.dtype or ("bfloat16" if self.accelerated else "float32")
        self.config = get_preset(options.preset)
        self.model = in_specjax.random_model(self.config, self.dtype)
        tower = {"gaia_xp": {"backbone": self.model.params["gaia_xp"]["backbone"]}}
        self.bare = dataclasses.replace(self.model, variables={"params": tower})
        self.beside = Beside(options, self.config, self.dtype)
        # what the lines cost, for the plot: against which number, of what, (number, seconds)
        self.curves: Curves = {"spectra": {}, "seeds": {}}

    def a(self) -> Iterator[Row]:
        """Embed spectra."""
        config, rows = self.config, self._size(1024, 16, 8)
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
            beside = self.beside.calls("embed", name, flux, compile_too=name == "lamost")
            what = f"embed {count} spectra, {name}"
            call = functools.partial(embed, flux)
            yield self._row("a", what, call, beside, count, "spectra", flops * count)
        yield from self._spectra_curve()

    def _xp(self, flux: np.ndarray) -> Any:
        """Run the bare tower, as the PyTorch side does: `embed` would project."""
        return self.bare.embed(flux, "gaia_xp")

    def _spectra_curve(self) -> Iterator[Row]:
        config = get_preset("mini")
        mini = in_specjax.random_model(config, self.dtype)
        flops = paper_floors.lamost_tower(config.specformer) + paper_floors.lamost_projection(config)
        for count in (64, 256, 1024) if self.options.quick else (64, 256, 1024, 4096):
            flux = in_specjax.random_spectra(config.specformer.num_pixels, count)
            call = functools.partial(mini.embed, flux)
            row = self._row("a", f"embed {count} spectra, mini", call, None, count, "spectra", flops * count)
            self._mark("spectra", "embedding, mini", row)
            yield row

    def b(self) -> Iterator[Row]:
        """Run LoRA1 and LoRA3 steps."""
        tower, batch = paper_floors.lamost_tower(self.config.specformer), self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        steps = in_specjax.MaskedModelling(self.model, tokens)
        hidden = self._hidden(batch)
        for seeds in (1, 2 if self.options.quick else self._size(32, 4, 2)):
            beside = self.beside.calls("masked_modelling", tokens, hidden, seeds, compile_too=seeds == 1)
            what = f"LoRA1 step, {batch} spectra, {_seeds(seeds)}"
            flops = 2 * tower * batch * seeds
            row = self._row("b", what, steps.call(seeds), beside, seeds, "steps", flops)
            self._mark("seeds", f"LoRA1 step of {batch} spectra", row)
            yield row
        yield from self._contrastive(64)

    def _contrastive(self, batch: int) -> Iterator[Row]:
        random, tower = np.random.default_rng(0), self.config.specformer
        tokens = random.standard_normal((batch, tower.num_tokens, tower.dim), np.float32)
        z_xp = random.standard_normal((batch, self.config.projection.dim), np.float32)
        steps = in_specjax.Contrastive(self.model, jax.numpy.asarray(tokens), jax.numpy.asarray(z_xp))
        once, each = paper_floors.mixing(self.config), 2 * paper_floors.after_mixing(self.config)
        for seeds in (1, 4) if self.options.quick else (1, 4, 16):
            beside = self.beside.calls("contrastive", tokens, z_xp, seeds)
            what = f"LoRA3 step, {batch} spectra, cached tokens, {_seeds(seeds)}"
            flops = batch * (once + each * seeds)
            row = self._row("b", what, steps.call(seeds), beside, seeds, "steps", flops)
            self._mark("seeds", f"LoRA3 step of {batch} spectra", row)
            yield row

    def c(self) -> Iterator[Row]:
        """Run whole LoRA4 trainings on cached features; LoRA2 is the same on the mean token."""
        random, width = np.random.default_rng(0), self.config.projection.dim
        features = random.standard_normal((HEAD_STARS, width), np.float32)
        labels = random.standard_normal(HEAD_STARS, np.float32)
        run = in_specjax.HeadRun(self.model, features, labels, HEAD_STEPS)
        flops = paper_floors.head_run(self.config, width, HEAD_STARS, HEAD_STEPS)
        for seeds in (1, 4, 16) if self.options.quick else (1, 4, 16, 64, 256):
            # PyTorch trains one after the other: beyond 16, what 16 take times so many.
            beside = None
            if seeds <= 16:
                beside = self.beside.calls("head_run", features, labels, seeds, HEAD_STEPS)
            what = f"LoRA4 run, {HEAD_STARS} stars, {HEAD_STEPS} steps, {_seeds(seeds)}"
            repeats = 1 if seeds > 64 and not self.accelerated else None
            row = self._row(
                "c", what, run.call(seeds), beside, seeds, "seeds", flops * seeds, repeats=repeats
            )
            self._mark("seeds", "LoRA4 run", row)
            self._mark("seeds", "LoRA4 run, with compiling", row, row.first)
            yield row

    def d(self) -> Iterator[Row]:
        """Run the whole table, from spectra on the grid to predictions."""
        preset = self.options.table_preset or ("paper" if self.accelerated else "mini")
        model = in_specjax.random_model(get_preset(preset), self.dtype)
        seeds = 4 if self.options.quick else self._size(32, 16, 4)
        what = f"six configurations, {preset}, {_seeds(seeds)}"
        call = in_specjax.whole_table(model, seeds)
        note = "target: under 60 s" if self.accelerated and preset == "paper" else ""
        yield self._row("d", what, call, None, seeds, "seeds", repeats=1, note=note)

    def e(self) -> Iterator[Row]:
        """Run a step that trains the whole encoder."""
        batch = self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        call = in_specjax.MaskedModelling(self.model, tokens, full=True).call(1)
        beside = self.beside.calls("masked_modelling", tokens, self._hidden(batch), 1, full=True)
        flops = 3 * paper_floors.lamost_tower(self.config.specformer) * batch
        what = f"full step of the LAMOST encoder, {batch} spectra"
        yield self._row("e", what, call, beside, 1, "steps", flops)

    def f(self) -> Iterator[Row]:
        """Time cold processes."""
        yield from cold.compile_rows(self.options.preset, self.dtype)
        yield from cold.predict_rows(1 if self.options.quick else 3)

    def g(self) -> Iterator[Row]:
        """See how much memory single pieces of work take, each in a process of its own."""
        yield from memory.rows(self.options.preset, self.dtype, quick=self.options.quick)

    def _size(self, accelerated: int, full: int, quick: int) -> int:
        if self.accelerated:
            return accelerated
        return quick if self.options.quick else full

    def _hidden(self, batch: int) -> np.ndarray:
        return np.array(chunk_mask(jax.random.key(0), batch, self.config.specformer))

    def _mark(self, against: str, of_what: str, row: Row, seconds: float | None = None) -> None:
        self.curves[against].setdefault(of_what, []).append((row.count, seconds or row.median()))

    def _row(
        self,
        section: str,
        what: str,
        call: Call,
        beside: tuple[dict[str, Call], str] | None,
        count: int,
        unit: str,
        flops: float = float("nan"),
        *,
        repeats: int | None = None,
        note: str = "",
    ) -> Row:
        """Time a call of specjax in turns with those beside, which come with a note of their own."""
        others, remark = beside or ({}, "")
        repeats = repeats or (2 if self.options.quick else self.options.repeats)
        limit = 10 if self.options.quick else 40
        times, first = in_turns({"specjax": call, **others}, repeats=repeats, limit=limit)
        return Row(
            section=section, what=what, count=count, unit=unit, times=times, flops=flops, first=first,
            note=note or remark,
        )  # fmt: skip


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
