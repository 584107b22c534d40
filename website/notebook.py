"""Run the cells of a tutorial in a Jupyter kernel, and keep what they print and plot."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from specjax.atomic import atomic_file
from website.cells import Cell

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "tutorials"
TIMEOUT = 1800  # seconds for one cell: generous, as machines may be shared


def executed(cells: Sequence[Cell], cache: Path | None = CACHE) -> Any:
    """Return the notebook of a tutorial with the outputs of its cells.

    A notebook that was executed before is read from the cache, unless its cells, specjax or the installed
    packages have changed.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises an exception, or a command fails.
    """
    kept = None if cache is None else cache / f"{_digest(cells)}.ipynb"
    if kept is not None and kept.exists():
        return nbformat.read(kept, as_version=4)
    notebook = as_notebook(cells)
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.realpath(temporary)
        client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}})
        client.execute(env=_environment())
    # The folder is gone, and its name would be another one in every build.
    notebook = nbformat.reads(nbformat.writes(notebook).replace(f"{folder}/", ""), as_version=4)
    if kept is not None:
        with atomic_file(kept) as part:
            nbformat.write(notebook, part)
    return notebook


def as_notebook(cells: Sequence[Cell]) -> Any:
    """Return the cells of a tutorial as a notebook without outputs."""
    v4 = nbformat.v4
    made = [
        v4.new_code_cell(cell.notebook_source.rstrip(), id=f"cell-{number}")
        if cell.is_code
        else v4.new_markdown_cell(cell.source.strip(), id=f"cell-{number}")
        for number, cell in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def _environment() -> dict[str, str]:
    """The environment of the kernel, in which `specjax` is the one of this checkout."""
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    modules = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(filter(None, modules)),
    }


def _digest(cells: Sequence[Cell]) -> str:
    """The digest of the cells, of the files of specjax, and of the versions of all packages."""
    versions = sorted(f"{package.name}=={package.version}" for package in distributions())
    digest = hashlib.sha256(f"{sys.version} {versions}".encode())
    for cell in cells:
        digest.update(f"{cell.language}\n{cell.source}\n".encode())
    for package in ("specjax", "checkpoints_convert"):
        for file in sorted((ROOT / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:24]
