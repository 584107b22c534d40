"""The PyTorch calls to compare with, where PyTorch is installed and torch.compile works."""

from collections.abc import Callable
from typing import Any

from benchmarks.in_torch import TorchSide, missing_packages
from benchmarks.options import Options
from specjax.config import ModelConfig
from specjax.progress import say

Call = Callable[[], Any]


class Comparison:
    """Makes PyTorch calls, and stops using torch.compile once it has failed."""

    def __init__(self, options: Options, config: ModelConfig, dtype: str) -> None:
        """Make the PyTorch side, if it is wanted and installed."""
        unavailable = missing_packages() if options.torch else "left out"
        self.torch = None if unavailable else TorchSide(config, half=dtype == "bfloat16")
        self.compiling = options.torch_compile and not options.quick
        if unavailable:
            say(f"PyTorch: {unavailable}")

    def calls(
        self, method: str, *arguments: Any, compile_too: bool = False, **options: Any
    ) -> tuple[dict[str, Call], str]:
        """Make the calls of a method of `TorchSide`.

        Args:
            method: name of the method.
            arguments: its arguments.
            compile_too: also make the call with torch.compile.
            options: its keyword arguments.

        Returns:
            Calls by name, {} without PyTorch, and a note if torch.compile failed.
        """
        if self.torch is None:
            return {}, ""
        make = getattr(self.torch, method)
        calls: dict[str, Call] = {"torch": make(*arguments, **options)}
        if not (compile_too and self.compiling):
            return calls, ""
        try:
            compiled = make(*arguments, **options, compile_it=True)
            compiled()
        except Exception as error:  # the compiler may raise anything; the table continues without it
            self.compiling = False
            return calls, f"torch.compile does not work here: {_first_line(error)}"
        return {**calls, "torch.compile": compiled}, ""


def _first_line(error: Exception, most: int = 80) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:most].replace("|", "/")
