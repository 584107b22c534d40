"""The commands of specjax on a few stars, run in processes of their own."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from benchmarks.reliability.kinds import write_stars
from specjax.checkpoints import load_adapter, load_model
from specjax.checkpoints.trees import flatten
from specjax.prepare import prepare_spectra
from specjax.progress import silent
from specjax.surveys import read
from specjax.surveys.io.tables import read_table
from specjax.typing import AnyArray

STARS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command and its result.

    Attributes:
        words: after `specjax`; OUT stands for the output.
        out: name of the output.
        read: returns the numbers in the output.
        again: words that are added to continue.
    """

    words: tuple[str, ...]
    out: str
    read: Callable[[Path], AnyArray]
    again: tuple[str, ...] = ()

    def filled(self, out: Path, again: bool = False) -> list[str]:
        """Return the words with the path of the output."""
        words = self.words + (self.again if again else ())
        return [str(out) if word == "OUT" else word for word in words]


def make_commands(place: Path, wanted: Collection[str]) -> dict[str, Command]:
    """Write the inputs below a folder, and return the wanted commands and those that they need."""
    stars = write_stars(place / "stars", STARS)
    ready = [place / f"ready{number}.h5" for number in range(3)]
    prepare_spectra([stars], ready[0], workers=1, say=silent)
    for copy in ready[1:]:
        shutil.copy(ready[0], copy)
    adapt = ("adapt", "--spectra", str(ready[0]), "--labels", str(stars.with_suffix(".csv")), "--out", "OUT")
    sizes = ("--configuration", "lora2", "lora4", "--seeds", "2", "--train", "20", "--validate", "6")
    adapter = place / "adapt" / "reference" / "run" / "adapters" / "stars" / "lora4"
    commands = {
        "prepare": Command(
            words=("prepare", str(stars), "--out", "OUT", "--workers", "1"),
            out="p.h5",
            read=_pixels,
        ),
        "adapt": Command(words=(*adapt, *sizes, "--steps", "10"), out="run", read=_scores),
        "predict": Command(
            words=("predict", "--adapter", str(adapter), *map(str, ready), "-o", "OUT"),
            out="l.fits",
            read=_labels,
        ),
        "pretrain": Command(
            words=(
                *("pretrain", "--out", "OUT", "--spectra", str(ready[0]), "--stages", "backbone"),
                *("--steps", "6", "--batch", "8", "--report-every", "2", "--save-every", "2"),
            ),
            out="model",
            read=_parameters,
            again=("--resume",),
        ),
    }
    needed = {*wanted, *(("adapt",) if "predict" in wanted else ())}
    return {name: command for name, command in commands.items() if name in needed}


def environment_of(cache: Path) -> dict[str, str]:
    """Return the environment of the commands, with their cache folder."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "SPECJAX_CACHE": str(cache.absolute()), "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}


def _pixels(path: Path) -> AnyArray:
    return np.asarray(read(path).flux)


def _labels(path: Path) -> AnyArray:
    found = read_table(path)
    return np.concatenate([np.asarray(found[name], dtype=np.float64) for name in ("fe_h", "fe_h_err")])


def _scores(path: Path) -> AnyArray:
    """Return the predictions, and the adapters of all configurations."""
    scores = [np.asarray(read_table(path / "predictions.ecsv")["fe_h_predicted"], dtype=np.float64)]
    folders = sorted((path / "adapters" / "stars").iterdir())
    leaves = [leaf for folder in folders for _, leaf in flatten(load_adapter(folder).arrays)]
    return np.concatenate(scores + [np.ravel(leaf).astype(np.float64) for leaf in leaves if leaf is not None])


def _parameters(path: Path) -> AnyArray:
    leaves = [np.ravel(leaf) for _, leaf in flatten(load_model(path).arrays) if leaf is not None]
    return np.concatenate([leaf.astype(np.float64) for leaf in leaves])
