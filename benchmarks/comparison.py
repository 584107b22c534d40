"""The PyTorch calls to compare with, where PyTorch is installed."""

import importlib.util
from typing import Any

from benchmarks.options import Options
from benchmarks.timing import Call
from specjax.foundation import Foundation
from specjax.progress import say

LOOP, FUSED, BATCHED = "PyTorch", "PyTorch, fused AdamW", "torch.func, fused AdamW"
FOLDED = "PyTorch, pooling as in specjax"
COMPILED = ", compiled"


def missing_packages() -> str:
    """Return a message on the packages that are not installed, or "" if all are."""
    missing = [name for name in ("torch", "peft") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install '.[bench]'" if missing else ""


class Comparison:
    """Makes PyTorch calls by side, eager and compiled."""

    def __init__(self, options: Options, model: Foundation) -> None:
        """Make the PyTorch side of a model, if it is wanted, installed and has the published modules."""
        config, self.side = model.config, None
        self.compiling = options.torch_compile and not options.quick
        reason = missing_packages() if options.torch else "left out"
        if config.specformer.flux_scale is not None or config.head.members > 1:
            reason = reason or f"there are no published modules for {config.name}"
        if reason:
            say(f"PyTorch: {reason}")
            return
        from benchmarks.in_torch import TorchSide

        self.side = TorchSide(config, half=model.dtype == "bfloat16", model=model)

    def embed(self, kind: str, flux: Any) -> dict[str, Call]:
        """Return the calls of `TorchSide.embed`."""
        if self.side is None:
            return {}
        calls: dict[str, Call] = {LOOP: self.side.embed(kind, flux)}
        return calls | (
            {LOOP + COMPILED: self.side.embed(kind, flux, compiled=True)} if self.compiling else {}
        )

    def training(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Make a training with a method of `TorchSide`; None without PyTorch."""
        return None if self.side is None else getattr(self.side, method)(*arguments, **options)

    def calls(
        self, training: Any, seeds: int, *, loop: str = LOOP, batched: str = BATCHED
    ) -> dict[str, Call]:
        """Return the calls that train seeds one after the other, with both optimizers, and together.

        Args:
            training: of `training`.
            seeds: number of seeds.
            loop: name of the side that trains one after the other.
            batched: name of the side that trains them together; one seed is not batched.
        """
        if training is None:
            return {}
        calls: dict[str, Call] = {}
        for ending, compiled in (("", False), (COMPILED, True)) if self.compiling else (("", False),):
            calls[loop + ending] = training.loop(seeds, compiled=compiled)
            if loop == LOOP:
                calls[FUSED + ending] = training.loop(seeds, fused=True, compiled=compiled)
            if seeds > 1:
                calls[batched + ending] = training.batched(seeds, compiled=compiled)
        return calls
