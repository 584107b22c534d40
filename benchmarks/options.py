"""What a run of the benchmarks measures, as the command line says it."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    preset: Literal["paper", "mini"] = "paper"
    """sizes of the model in a, b, c, e and g"""
    table_preset: Literal["paper", "mini"] | None = None
    """sizes of the model in d: those of the paper on an accelerator and mini on a CPU, if not said"""
    only: tuple[Literal["a", "b", "c", "d", "e", "f", "g"], ...] = ()
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
    """JSON to write, after every line; the plot goes beside it"""
