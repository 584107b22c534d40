"""The sections of the table, each a generator of rows."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from benchmarks import cold, flop_counts, in_specjax, memory, names, preprocess, surveys
from benchmarks.comparison import BATCHED, FOLDED, Comparison
from benchmarks.options import Options
from benchmarks.targets import HOST_SPECTRA, STARS, STEPS
from benchmarks.timing import OURS, Call, Row, Timing, time_alternating
from specjax.config import get_preset
from specjax.preprocess import to_lamost


class Bench:
    """The model, the PyTorch side, and one method per section, named by its letter."""

    def __init__(self, options: Options) -> None:
        """Choose the type of matrix products; models are made when they are needed."""
        self.options = options
        self.accelerated = jax.default_backend() != "cpu"
        self.dtype = options.dtype or ("bfloat16" if self.accelerated else "float32")
        self.config = get_preset(options.preset)

    @functools.cached_property
    def model(self) -> Any:
        """A model of the preset with random weights."""
        return in_specjax.random_model(self.config, self.dtype)

    @functools.cached_property
    def comparison(self) -> Comparison:
        """The PyTorch side, with the same weights."""
        return Comparison(self.options, self.model)

    def a(self) -> Iterator[Row]:
        """Embed spectra."""
        config, rows = self.config, self._size(1024, 16, 8)
        tower = flop_counts.lamost_tower(config.specformer)
        projected = tower + flop_counts.lamost_projection(config)
        pixels, samples = config.specformer.num_pixels, config.xp_autoencoder.num_pixels
        xp_tower = {"gaia_xp": {"backbone": self.model.params["gaia_xp"]["backbone"]}}
        # The bare encoder, as on the PyTorch side; `embed` of the whole model would project.
        bare = dataclasses.replace(self.model, variables={"params": xp_tower})
        for name, embed, flops, flux in (
            ("lamost", self.model.mean_token, tower, in_specjax.random_spectra(pixels, rows)),
            ("projected", self.model.embed, projected, in_specjax.random_spectra(pixels, rows)),
            (
                "gaia_xp",
                functools.partial(bare.embed, survey="gaia_xp"),
                flop_counts.xp_tower(config),
                in_specjax.random_spectra(samples, 8 * rows),
            ),
        ):
            count = len(flux)
            calls: dict[str, Call] = {
                OURS: functools.partial(embed, flux),
                **self.comparison.embed(name, flux),
            }
            yield self._row("a", names.embedding(count, name), calls, count, "spectra", flops * count)
        yield from self._spectra_curve()

    def _spectra_curve(self) -> Iterator[Row]:
        config = get_preset("mini")
        mini = in_specjax.random_model(config, self.dtype)
        flops = flop_counts.lamost_tower(config.specformer) + flop_counts.lamost_projection(config)
        for count in self.options.pick((64, 256), (64, 256, 1024, 4096), (64, 256, 1024, 4096, 16384)):
            flux = in_specjax.random_spectra(config.specformer.num_pixels, count)
            calls = {OURS: functools.partial(mini.embed, flux)}
            what, curve = names.embedding(count, "mini"), "embedding, mini"
            yield self._row("a", what, calls, count, "spectra", flops * count, panel="embedding", curve=curve)

    def b(self) -> Iterator[Row]:
        """Train single steps of LoRA1, of LoRA1 and LoRA2 together, and of LoRA3."""
        yield from self._masked_modelling()
        yield from self._joint()
        yield from self._contrastive(self.options.pick(8, 64, 64))

    def _masked_modelling(self) -> Iterator[Row]:
        batch = self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        rows, hidden = in_specjax.drawn_and_hidden(self.config, jax.random.key(1), batch)
        tower, numbers = flop_counts.lamost_tower(self.config.specformer), (1, self._size(32, 4, 2))
        factors = in_specjax.masked_modelling(self.model, tokens).start(numbers[-1])
        theirs = self.comparison.training("masked_modelling", tokens[rows], hidden, factors=factors)
        for seeds in numbers:
            ours = in_specjax.masked_modelling(self.model, tokens, seeds)
            what, flops = names.step("LoRA1", batch, seeds), 2 * tower * batch * seeds
            yield self._training("b", what, ours, theirs, seeds, "steps", flops, "lora1")

    def _joint(self) -> Iterator[Row]:
        batch = self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        labels = np.random.default_rng(2).standard_normal(batch, np.float32)
        tower, numbers = flop_counts.lamost_tower(self.config.specformer), (1, self._size(32, 4, 2))
        factors = in_specjax.joint(self.model, tokens, labels).start(numbers[-1])
        theirs = self.comparison.training("joint", tokens, labels, factors=factors)
        for seeds in numbers:
            ours = in_specjax.joint(self.model, tokens, labels, seeds)
            what, flops = names.step("LoRA1+LoRA2", batch, seeds), 2 * tower * batch * seeds
            yield self._training("b", what, ours, theirs, seeds, "steps", flops)

    def _contrastive(self, batch: int) -> Iterator[Row]:
        random, tower = np.random.default_rng(0), self.config.specformer
        tokens = random.standard_normal((batch, tower.num_tokens, tower.dim), np.float32)
        z_xp = random.standard_normal((batch, self.config.projection.dim), np.float32)
        ours, numbers = (
            in_specjax.contrastive(self.model, tokens, z_xp),
            self.options.pick((1, 2), (1, 4, 16), (1, 4, 16)),
        )
        factors = ours.start(numbers[-1])
        theirs = self.comparison.training("contrastive", tokens, z_xp, factors=factors)
        folded = self.comparison.training("contrastive", tokens, z_xp, factors=factors, folded=True)
        once, each = flop_counts.mixing(self.config), 2 * flop_counts.after_mixing(self.config)
        for seeds in numbers:
            what = names.step("LoRA3", batch, seeds)
            more = self.comparison.calls(
                folded, seeds, loop=FOLDED, batched=f"{BATCHED}, pooling as in specjax"
            )
            flops = batch * (once + each * seeds)
            yield self._training("b", what, ours, theirs, seeds, "steps", flops, "lora3", more=more)

    def c(self) -> Iterator[Row]:
        """Train LoRA4 on cached features; LoRA2 is the same on the mean token."""
        random, width = np.random.default_rng(0), self.config.projection.dim
        stars, steps = self.options.pick((20, 4), (STARS, STEPS), (STARS, STEPS))
        features = random.standard_normal((stars, width), np.float32)
        labels = random.standard_normal(stars, np.float32)
        ours = in_specjax.head_run(self.model, features, labels, steps)
        # PyTorch trains seeds one by one, so its time beyond so many follows from that of so many.
        most = self.options.pick(4, 16, 64)
        theirs = self.comparison.training("head_run", features, labels, steps, factors=ours.start(most))
        flops = flop_counts.head_run(self.config, width, stars, steps)
        for seeds in self.options.pick((1, 4), (1, 4, 16, 64), (1, 4, 16, 64, 256)):
            what = names.head_run(stars, steps, seeds)
            other = theirs if seeds <= most else None
            yield self._training("c", what, ours, other, seeds, "seeds", flops * seeds, "lora4")

    def d(self) -> Iterator[Row]:
        """Make the whole table, from spectra on the grid to predictions."""
        preset = self.options.table_preset or ("paper" if self.accelerated else "mini")
        model = in_specjax.random_model(get_preset(preset), self.dtype)
        seeds = self._size(32, 16, 2)
        what = names.six_configurations(preset, seeds)
        calls = {OURS: in_specjax.whole_table(model, seeds)}
        yield self._row("d", what, calls, seeds, "seeds", repeats=1 if self.options.quick else 2)

    def e(self) -> Iterator[Row]:
        """Train one step of the whole encoder."""
        batch = self._size(16, 8, 2)
        tokens = in_specjax.random_tokens(self.model, batch)
        _, hidden = in_specjax.drawn_and_hidden(self.config, jax.random.key(1), batch)
        theirs = self.comparison.training("masked_modelling", tokens, hidden, full=True)
        flops = 3 * flop_counts.lamost_tower(self.config.specformer) * batch
        what = f"full step of the LAMOST encoder, {batch} spectra"
        yield self._training("e", what, in_specjax.full_step(self.model, tokens), theirs, 1, "steps", flops)

    def f(self) -> Iterator[Row]:
        """Time new processes."""
        repeats = self.options.pick(1, 3, 3)
        yield from cold.compile_rows(self.options.preset, self.dtype, repeats)
        yield from cold.command_rows(repeats, seeds=self.options.pick(2, 16, 16))

    def g(self) -> Iterator[Row]:
        """Measure the peak memory of single tasks, each in a new process."""
        yield from memory.rows(self.options.preset, self.dtype, quick=self.options.quick)

    def h(self) -> Iterator[Row]:
        """Compare the prediction of a survey with the compiled core alone."""
        counts, rounds = self.options.pick(((200,), 1), ((10_000,), 3), ((10_000, 100_000), 3))
        yield from surveys.rate_rows(counts, rounds)

    def i(self) -> Iterator[Row]:
        """Predict files of several sizes."""
        powers = self.options.pick((2,), (3, 4), (3, 4, 5, 6))
        yield from surveys.number_rows(tuple(10**power for power in powers), self.options.pick(1, 3, 3))

    def j(self) -> Iterator[Row]:
        """Adapt with several numbers of seeds."""
        seeds = self.options.pick((1,), (1, 4, 16), (1, 4, 16, 64, 256))
        yield from surveys.seed_rows(seeds, self.options.pick(1, 2, 2))

    def k(self) -> Iterator[Row]:
        """Preprocess spectra, and do all that precedes the compiled programs for a prepared file."""
        count, many = self.options.pick((100, 200), (2000, HOST_SPECTRA), (2000, HOST_SPECTRA))
        spectra = preprocess.desi_like(count)
        own, model = preprocess.on_own_grids(spectra), preprocess.fill_model()
        gapped = preprocess.gapped(count)
        steps: dict[str, Call] = {
            "to_lamost, shared grid": lambda: to_lamost(spectra),
            "to_lamost, different grids": lambda: to_lamost(own),
            "fill of a tenth of the pixels, 30 components": lambda: model.apply(*gapped),
        }
        for what, call in steps.items():
            yield self._row("k", f"{what}, {count:,} spectra", {OURS: call}, count, "spectra")
        with TemporaryDirectory() as folder:
            call = preprocess.host_side(Path(folder), many)
            what = names.host_side(many)
            yield self._row("k", what, {OURS: call}, many, "spectra")

    def _size(self, accelerated: int, full: int, quick: int) -> int:
        if self.options.quick:
            return quick
        return accelerated if self.accelerated else full

    def _training(
        self,
        section: str,
        what: str,
        ours: in_specjax.Training,
        theirs: Any,
        seeds: int,
        unit: str,
        flops: float,
        panel: str = "",
        *,
        more: Mapping[str, Call] | None = None,
    ) -> Row:
        """Time a training in specjax and in PyTorch."""
        calls = {OURS: ours.call(seeds), **self.comparison.calls(theirs, seeds), **(more or {})}
        return self._row(section, what, calls, seeds, unit, flops, panel=panel)

    def _row(
        self,
        section: str,
        what: str,
        calls: Mapping[str, Call],
        count: int,
        unit: str,
        flops: float = float("nan"),
        *,
        repeats: int | None = None,
        panel: str = "",
        curve: str = "",
    ) -> Row:
        """Time the calls of all sides in alternation."""
        repeats = repeats or (2 if self.options.quick else self.options.repeats)
        limit = self.options.pick(10, 60, 120)
        timing: Timing = time_alternating(calls, repeats=repeats, limit=limit)
        return Row(
            section=section, what=what, count=count, unit=unit, times=timing.times, cpu=timing.cpu,
            first=timing.first, flops=flops, panel=panel, curve=curve, note="; ".join(timing.failures),
        )  # fmt: skip
