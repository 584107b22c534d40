"""Options of `python -m benchmarks`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    preset: Literal["paper", "mini"] = "paper"
    """Model sizes in sections a, b, c, e and g."""
    table_preset: Literal["paper", "mini"] | None = None
    """Model sizes in section d; by default paper on an accelerator and mini on a CPU."""
    only: tuple[Literal["a", "b", "c", "d", "e", "f", "g"], ...] = ()
    """Sections to run; by default all."""
    quick: bool = False
    """Use smaller batches and fewer calls, for a first look."""
    repeats: int = 5
    """Number of timed calls, of which the median is taken."""
    torch: bool = True
    """Compare with PyTorch."""
    torch_compile: bool = True
    """Compare with torch.compile too, for an embedding and a LoRA1 step."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of matrix products; by default bfloat16 on an accelerator and float32 on a CPU."""
    markdown: bool = False
    """Print Markdown."""
    out: Path = Path("runs/bench.json")
    """JSON file to write; the plot is written beside it."""
