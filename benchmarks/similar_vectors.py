"""Search nearest neighbours among random vectors, exactly and with an index: times, memory and recall.

    python -m benchmarks.similar_vectors --n 100000 [--dim 128] [--intrinsic 10] [--queries 200] [-o FILE]

The vectors are written to a catalogue as `specjax embed` writes it. They are normal in all `dim`
directions, the worst case of an index; or, with `--intrinsic`, a smooth function of so many normal numbers
with noise, as vectors of stars are of a few labels. Queries are drawn alike and are not in the catalogue.
Prints a line of JSON: seconds to build, save and load the index, milliseconds per query, the same as time of
all cores together ("cpu"), which a busy machine changes less, the fraction of the ten nearest vectors that
the index finds, and the memory of the process at its peak.
"""

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import h5py
import numpy as np
import tyro
from tyro.conf import arg

from specjax.pipeline.neighbours import Index, IndexOptions, exact_neighbours
from specjax.pipeline.vectors import open_catalogue
from specjax.progress import say
from specjax.typing import Float32Array

NEAREST = 10
_AT_ONCE = 1 << 16
_NOISE = 0.05

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    n: int = 100_000
    """number of vectors"""
    dim: int = 128
    """their length, that of the model mini by default"""
    intrinsic: int | None = None
    """number of directions in which they vary, by default all"""
    queries: int = 200
    """number of queries"""
    links: int = IndexOptions.links
    """links of a vector in the graph"""
    build_width: int = IndexOptions.build_width
    """candidates while a vector is inserted"""
    search_width: int = IndexOptions.search_width
    """candidates while a query is answered"""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """file to which the line is appended"""


def main(options: Options) -> None:
    """Run one case and print its line."""
    with tempfile.TemporaryDirectory() as folder:
        line = json.dumps({**asdict(options), "out": None, **measure(options, Path(folder))})
    print(line)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(f"{line}\n")


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Write a catalogue into a folder, search it in both ways, and return the figures."""
    draw = _draw(options)
    catalogue = folder / "vectors.h5"
    _write(catalogue, draw, options.n)
    found, path = open_catalogue(catalogue), folder / "index"
    queries = draw(options.queries, 1)
    graph = IndexOptions(
        links=options.links, build_width=options.build_width, search_width=options.search_width
    )
    exact = _timed(lambda: exact_neighbours(queries, found.blocks(), NEAREST))
    exact_one = _timed(lambda: exact_neighbours(queries[:1], found.blocks(), NEAREST))
    before = _peak_mb()
    built = _timed(lambda: Index.build(found.blocks(), len(found), found.width, graph, say=say))
    saved = _timed(lambda: built[0].save(path, found.content))
    loaded = _timed(lambda: Index.load(path, found.content, found.width, graph))
    answered = _timed(lambda: loaded[0](queries, NEAREST))
    same = [np.isin(a, b).mean() for a, b in zip(answered[0].row, exact[0].row, strict=True)]
    return {
        "exact_ms_per_query": 1e3 * exact[1] / options.queries,
        "exact_cpu_ms_per_query": 1e3 * exact[2] / options.queries,
        "exact_one_query_s": exact_one[1],
        "exact_peak_mb": before,
        "build_s": built[1],
        "build_cpu_s": built[2],
        "save_s": saved[1],
        "load_s": loaded[1],
        "index_mb": path.stat().st_size / 1e6,
        "index_ms_per_query": 1e3 * answered[1] / options.queries,
        "index_cpu_ms_per_query": 1e3 * answered[2] / options.queries,
        "recall_at_10": float(np.mean(same)),
        "peak_mb": _peak_mb(),
        "cores": os.cpu_count(),
    }


def _draw(options: Options) -> Callable[[int, int], Float32Array]:
    """Return a function that draws vectors (count, dim) with a seed."""
    hidden = options.intrinsic or options.dim
    fixed = np.random.default_rng(123)
    first, second = fixed.normal(size=(hidden, 64)) / hidden**0.5, fixed.normal(size=(64, options.dim)) / 8

    def draw(count: int, seed: int) -> Float32Array:
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(count, hidden)).astype(np.float32)
        if options.intrinsic is not None:
            smooth = np.tanh(values @ first.astype(np.float32)) @ second.astype(np.float32)
            values = smooth + _NOISE * rng.normal(size=smooth.shape)
        return values.astype(np.float32)

    return draw


def _write(path: Path, draw: Callable[[int, int], Float32Array], count: int) -> None:
    with h5py.File(path, "w") as file:
        file["id"] = np.arange(count).astype("S")
        file["flag"] = np.full(count, b"good", "S4")
        vectors = file.create_dataset("vectors", (count, draw(1, 0).shape[1]), "f4")
        for start in range(0, count, _AT_ONCE):
            stop = min(start + _AT_ONCE, count)
            vectors[start:stop] = draw(stop - start, 1000 + start)


def _timed(function: Callable[[], T]) -> tuple[T, float, float]:
    """Return a result, and the seconds and the seconds of all cores that it took."""
    start, cpu = time.monotonic(), time.process_time()
    result = function()
    return result, time.monotonic() - start, time.process_time() - cpu


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
