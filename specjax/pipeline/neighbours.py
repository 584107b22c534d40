"""Nearest neighbours among vectors by cosine similarity: exact, or with an index that is kept on disk.

The exact search compares every query with every vector, block by block. The index is the graph of Malkov and
Yashunin (arXiv 1603.09320, HNSW), made by hnswlib: a query is compared with few vectors, and most of its
nearest ones are found.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from specjax._version import __version__
from specjax.atomic import atomic_file
from specjax.errors import DataError
from specjax.progress import Say, silent
from specjax.typing import BoolArray, Float32Array, IntArray

if TYPE_CHECKING:
    import hnswlib

_QUERIES = 512  # at a time: with a block of 65,536 rows, 134 MB of similarities
_READ = 1 << 24  # bytes
_SEED = 0


class Neighbours(NamedTuple):
    """The nearest vectors of q queries, in the order of their similarity.

    Attributes:
        row: (q, k) rows; -1 where there are fewer than k vectors.
        similarity: (q, k) cosines of the angle to the query; -inf there.
    """

    row: IntArray
    similarity: Float32Array


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Sizes of the graph.

    Attributes:
        links: links of a vector in every layer of the graph, twice as many in the lowest one (M).
        build_width: candidates that are kept while a vector is inserted (ef_construction).
        search_width: candidates that are kept while a query is answered (ef), at least.
    """

    links: int = 16
    build_width: int = 200
    search_width: int = 200


def normalised(vectors: Float32Array) -> tuple[Float32Array, BoolArray]:
    """Return vectors (n, d) of length one, and which of them (n,) have a direction.

    The others, those that are zero or not finite, become zero.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = np.isfinite(length) & (length > 0)
    unit = np.divide(vectors, length, out=np.zeros(vectors.shape, np.float32), where=known)
    return unit, known[:, 0]


def exact_neighbours(
    queries: Float32Array,
    blocks: Iterable[Float32Array],
    count: int,
    *,
    without: IntArray | None = None,
) -> Neighbours:
    """Compare queries (q, d) with all vectors.

    Args:
        queries: vectors with a direction.
        blocks: all vectors, (m, d) each; those without a direction are no neighbours.
        count: number of neighbours per query.
        without: (q,) a row that is no neighbour of the query, its own; -1 for none.
    """
    unit, _ = normalised(queries)
    best = Neighbours(np.full((len(unit), count), -1), np.full((len(unit), count), -np.inf, dtype=np.float32))
    start = 0
    for block in blocks:
        vectors, known = normalised(block)
        for first in range(0, len(unit), _QUERIES):
            some = slice(first, first + _QUERIES)
            similarity = np.clip(unit[some] @ vectors.T, -1.0, 1.0)
            similarity[:, ~known] = -np.inf
            if without is not None:
                own = without[some] - start
                here = np.flatnonzero((own >= 0) & (own < len(block)))
                similarity[here, own[here]] = -np.inf
            _keep_best(best, some, similarity, start)
        start += len(block)
    return best


def _keep_best(best: Neighbours, some: slice, similarity: Float32Array, start: int) -> None:
    """Merge similarities (q, m) to rows from `start` on into the best ones so far; equal ones by row."""
    count = min(best.row.shape[1], similarity.shape[1])
    # Of the rows that are as similar as the last one, the partition keeps any, so that ties at the end of the
    # list are open, as are those of the index.
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(similarity, nearest, axis=1)
    rows = np.where(np.isfinite(values), nearest + start, -1)
    all_rows = np.concatenate([best.row[some], rows], axis=1)
    all_values = np.concatenate([best.similarity[some], values], axis=1)
    order = np.lexsort((all_rows, -all_values), axis=1)[:, : best.row.shape[1]]
    best.row[some] = np.take_along_axis(all_rows, order, axis=1)
    best.similarity[some] = np.take_along_axis(all_values, order, axis=1)


def has_hnswlib() -> bool:
    """Whether an index can be built."""
    try:
        import hnswlib  # noqa: F401
    except ImportError:
        return False
    return True


class Index:
    """A graph of the vectors of a catalogue that have a direction, in memory."""

    def __init__(self, graph: "hnswlib.Index", options: IndexOptions) -> None:
        self.graph, self.options = graph, options

    @classmethod
    def build(
        cls,
        blocks: Iterable[Float32Array],
        size: int,
        width: int,
        options: IndexOptions = IndexOptions(),
        *,
        threads: int = -1,
        say: Say = silent,
    ) -> "Index":
        """Insert all vectors.

        Args:
            blocks: all vectors, (m, width) each.
            size: their number.
            width: the length of a vector.
            options: sizes of the graph.
            threads: number of threads, by default that of the cores; with one, the graph is always the same.
            say: receives lines of progress.
        """
        import hnswlib

        graph = hnswlib.Index(space="ip", dim=width)
        graph.init_index(size, M=options.links, ef_construction=options.build_width, random_seed=_SEED)
        start = 0
        for block in blocks:
            vectors, known = normalised(block)
            if known.any():
                graph.add_items(vectors[known], start + np.flatnonzero(known), num_threads=threads)
            start += len(block)
            say(f"index: {start:,} of {size:,} vectors")
        return cls(graph, options)

    def __call__(
        self, queries: Float32Array, count: int, *, without: IntArray | None = None, threads: int = -1
    ) -> Neighbours:
        """Return `count` neighbours of queries (q, d), as `exact_neighbours`."""
        unit, _ = normalised(queries)
        asked = min(count + (without is not None), self.graph.get_current_count())
        row = np.full((len(unit), asked), -1)
        similarity = np.full(row.shape, -np.inf, np.float32)
        if asked:
            self.graph.set_ef(max(self.options.search_width, 2 * asked))
            labels, distance = self.graph.knn_query(unit, k=asked, num_threads=threads)
            row, similarity = labels.astype(np.int64), np.clip(1.0 - distance, -1.0, 1.0)
        if without is not None:
            own = row == without[:, None]
            row, similarity = np.where(own, -1, row), np.where(own, -np.inf, similarity)
        order = np.lexsort((row, -similarity), axis=1)[:, :count]
        padding = ((0, 0), (0, count - order.shape[1]))
        return Neighbours(
            np.pad(np.take_along_axis(row, order, axis=1), padding, constant_values=-1),
            np.pad(np.take_along_axis(similarity, order, axis=1), padding, constant_values=-np.inf),
        )

    def save(self, path: Path, content: str) -> None:
        """Write the graph, and beside it what it was made of.

        Args:
            path: the file; the description is PATH.json.
            content: the digest of the catalogue.
        """
        with atomic_file(path) as temporary:
            self.graph.save_index(str(temporary))
            digest = _digest(temporary)
        record = {**_record(content, self.graph.dim, self.options), "sha256": digest}
        record["vectors"] = self.graph.get_current_count()
        with atomic_file(_description(path)) as temporary:
            temporary.write_text(json.dumps(record, indent=1))

    @classmethod
    def load(cls, path: Path, content: str, width: int, options: IndexOptions = IndexOptions()) -> "Index":
        """Read a graph that `save` has written.

        Its bytes are checked first, because hnswlib believes whatever is in its files.

        Raises:
            DataError: there is none, it is damaged, or of another catalogue or other options.
        """
        import hnswlib

        try:
            found: dict[str, Any] = json.loads(_description(path).read_text())
            digest, size = found.pop("sha256"), found.pop("vectors")
            if not path.is_file():
                raise DataError(f"there is no index {path}")
            if found != _record(content, width, options):
                raise DataError(f"{path} is the index of another catalogue or of an earlier state of it")
            if _digest(path) != digest:
                raise DataError(f"{path} is damaged")
        except FileNotFoundError:
            raise DataError(f"there is no index {path}") from None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{_description(path)} cannot be read: {error}") from None
        graph = hnswlib.Index(space="ip", dim=width)
        graph.load_index(str(path), max_elements=size)
        return cls(graph, options)


def _record(content: str, width: int, options: IndexOptions) -> dict[str, Any]:
    return {"specjax": __version__, "catalogue": content, "width": width, **asdict(options)}


def _description(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_READ):
            digest.update(part)
    return digest.hexdigest()
