"""Who runs beside specjax: PyTorch, where it is installed, and torch.compile, where it works."""

from collections.abc import Callable
from typing import Any

from benchmarks.in_torch import TorchSide, available
from benchmarks.options import Options
from specjax.config import ModelConfig
from specjax.progress import say

Call = Callable[[], Any]


class Beside:
    """Makes PyTorch's calls of the same work, and remembers what could not be had."""

    def __init__(self, options: Options, config: ModelConfig, dtype: str) -> None:
        """See who takes part."""
        absent = available() if options.torch else "left out"
        self.torch = None if absent else TorchSide(config, half=dtype == "bfloat16")
        self.compiling = options.torch_compile and not options.quick
        if absent:
            say(f"PyTorch: {absent}")

    def calls(
        self, method: str, *arguments: Any, compile_too: bool = False, **options: Any
    ) -> tuple[dict[str, Call], str]:
        """Make the calls of a method of `TorchSide`, {} without PyTorch, and a note on what failed."""
        if self.torch is None:
            return {}, ""
        make = getattr(self.torch, method)
        calls: dict[str, Call] = {"torch": make(*arguments, **options)}
        if not (compile_too and self.compiling):
            return calls, ""
        try:
            compiled = make(*arguments, **options, compile_it=True)
            compiled()
        except Exception as error:  # whatever its compiler raises; the table goes on without it
            self.compiling = False
            return calls, f"torch.compile does not work here: {_first_line(error)}"
        return {**calls, "torch.compile": compiled}, ""


def _first_line(error: Exception, most: int = 80) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:most].replace("|", "/")
