"""The commands of specjax on a few stars, run in processes of their own."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.reliability.kinds import write_stars
from specjax.checkpoints import load_model
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


def make_commands(place: Path) -> dict[str, Command]:
    """Write the inputs below a folder and return the commands."""
    stars = write_stars(place / "stars", STARS)
    ready = place / "ready.h5"
    prepare_spectra([stars], ready, workers=1, say=silent)
    adapt = ("adapt", "--spectra", str(ready), "--labels", str(stars.with_suffix(".csv")), "--out", "OUT")
    sizes = ("--seeds", "2", "--train", "20", "--validate", "6", "--steps", "10")
    adapter = place / "reference" / "run" / "adapters" / "stars" / "lora4"
    return {
        "prepare": Command(
            words=("prepare", str(stars), "--out", "OUT", "--workers", "1"), out="p.h5", read=_pixels
        ),
        "adapt": Command(words=(*adapt, *sizes), out="run", read=_scores),
        "predict": Command(
            words=("predict", "--adapter", str(adapter), str(ready), "-o", "OUT"), out="l.fits", read=_labels
        ),
        "pretrain": Command(
            words=(
                *("pretrain", "--out", "OUT", "--spectra", str(ready), "--stages", "backbone"),
                *("--steps", "6", "--batch", "8", "--report-every", "2", "--save-every", "2"),
            ),
            out="model",
            read=_parameters,
            again=("--resume",),
        ),
    }


def start(
    words: tuple[str, ...], out: Path, environment: Mapping[str, str], prefix: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    """Start a command in its own group of processes."""
    filled = [str(out) if word == "OUT" else word for word in words]
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "specjax", *filled],
        env=dict(environment),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def environment_of(place: Path) -> dict[str, str]:
    """Return the environment of the commands, with a cache of its own."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "SPECJAX_CACHE": str(place / "cache"), "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _pixels(path: Path) -> AnyArray:
    return np.asarray(read(path).flux)


def _labels(path: Path) -> AnyArray:
    return np.asarray(read_table(path)["fe_h"], dtype=np.float64)


def _scores(path: Path) -> AnyArray:
    return np.asarray(read_table(path / "predictions.ecsv")["fe_h_predicted"], dtype=np.float64)


def _parameters(path: Path) -> AnyArray:
    leaves = [np.ravel(leaf) for _, leaf in flatten(load_model(path).arrays) if leaf is not None]
    return np.concatenate([leaf.astype(np.float64) for leaf in leaves])
