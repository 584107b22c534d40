"""Options of `python -m benchmarks`."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeVar

Section = Literal["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    preset: Literal["paper", "mini"] = "paper"
    """Model sizes in sections a, b, c, e and g; PyTorch is compared at those of the paper only."""
    table_preset: Literal["paper", "mini"] | None = None
    """Model sizes in section d; by default paper on an accelerator and mini on a CPU."""
    only: tuple[Section, ...] = ()
    """Sections to run; by default all."""
    quick: bool = False
    """Use smaller sizes and fewer calls, without torch.compile, for a first look."""
    full: bool = False
    """Measure up to a million spectra, 256 seeds of `specjax adapt`, and PyTorch with 64 seeds."""
    resume: bool = False
    """Keep the sections of the JSON file that are finished, except those of --only."""
    repeats: int = 5
    """Number of timed calls, of which the median is taken."""
    torch: bool = True
    """Compare with PyTorch."""
    torch_compile: bool = True
    """Compare with torch.compile too, in every row."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the towers' matrix products; by default bfloat16 on an accelerator and float32 on a CPU."""
    markdown: bool = False
    """Print Markdown."""
    out: Path = Path("runs/bench.json")
    """JSON file to write; the plot is written beside it."""

    def pick(self, quick: Value, default: Value, full: Value) -> Value:
        """Return the value that belongs to the size of the run."""
        return quick if self.quick else full if self.full else default
