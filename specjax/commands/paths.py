"""Checks of the paths on a command line, before anything that takes seconds is loaded."""

import glob
from collections.abc import Iterable
from pathlib import Path

from specjax.errors import ConfigError, DataError

_HUB = "hf:"  # as in `checkpoints.hub`, which imports NumPy
_SHIPPED = ("mini", "mini-physics")  # `foundation.model.SHIPPED`, which imports JAX


def check_exist(**given: Path | Iterable[Path] | None) -> None:
    """Check that what options name is there.

    Args:
        **given: the paths of each option by its name. Addresses on the hub are taken for granted.

    Raises:
        DataError: a path does not exist.
    """
    for option, value in given.items():
        for path in [value] if isinstance(value, Path) else value or ():
            if not _on_hub(path) and not path.expanduser().exists():
                raise DataError(f"{path} does not exist (--{option.replace('_', '-')})")


def check_model(model: str) -> None:
    """Check that a model ships with specjax, is on the hub, or is a folder.

    Raises:
        DataError: there is no such folder.
    """
    if model not in _SHIPPED and not _on_hub(model) and not Path(model).expanduser().exists():
        raise DataError(
            f"there is no model {model}: give a model folder, hf://OWNER/NAME, or {' or '.join(_SHIPPED)}"
        )


def check_sources(sources: Iterable[Path], out: Path | None = None) -> None:
    """Check that files, folders and lists of them exist, and that none of them is the file to write.

    Patterns are left to those who expand them.

    Raises:
        DataError: a path does not exist.
        ConfigError: the output is one of the inputs.
    """
    for path in sources:
        text = str(path)
        named = Path(text[1:] if text.startswith("@") else text).expanduser()
        if not named.exists() and not glob.has_magic(text):
            raise DataError(f"{named} does not exist")
        if out is not None and named.is_file() and out.exists() and named.samefile(out):
            raise ConfigError(f"{out} is read and would be written: give another name for the output")


def _on_hub(path: str | Path) -> bool:
    return str(path).startswith(_HUB)
