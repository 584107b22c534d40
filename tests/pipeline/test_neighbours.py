"""The exact search against sorting, and the index against the exact search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specjax.errors import DataError
from specjax.pipeline import neighbours as module
from specjax.pipeline.neighbours import Index, IndexOptions, exact_neighbours

CLOSE = 1e-6  # float32


def draw(count, width=6, seed=0, unusable=()):
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    for row, value in unusable:
        vectors[row] = value
    return vectors


def in_blocks(vectors, size):
    return [vectors[start : start + size] for start in range(0, len(vectors), size)]


def cosines(queries, vectors):
    """Every cosine (q, n) in double precision; -inf for vectors without a direction."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (queries, vectors))
        return np.where(np.isfinite(b).all(axis=1), np.clip(a @ np.nan_to_num(b).T, -1, 1), -np.inf)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 50),
    nearest=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_the_exact_search_is_that_of_sorting_all_cosines(count, size, nearest, seed):
    unusable = [(row, value) for row, value in ((3, np.nan), (5, 0.0), (8, np.inf)) if row < count]
    vectors, queries = draw(count, seed=seed, unusable=unusable), draw(7, seed=seed + 1)
    found = exact_neighbours(queries, in_blocks(vectors, size), nearest)
    every = cosines(queries, vectors)
    best = -np.sort(-every, axis=1)[:, :nearest]
    best = np.pad(best, ((0, 0), (0, nearest - best.shape[1])), constant_values=-np.inf)
    np.testing.assert_allclose(found.similarity, best, atol=CLOSE)
    known = found.row >= 0
    assert (known == np.isfinite(best)).all()
    query = np.nonzero(known)[0]
    np.testing.assert_allclose(every[query, found.row[known]], found.similarity[known], atol=CLOSE)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found.row)


def test_queries_beyond_one_batch_are_those_of_one_batch(monkeypatch):
    vectors = draw(30)
    whole = exact_neighbours(vectors, in_blocks(vectors, 11), 3)
    monkeypatch.setattr(module, "_QUERIES", 4)
    parts = exact_neighbours(vectors, in_blocks(vectors, 11), 3)
    np.testing.assert_array_equal(parts.row, whole.row)
    assert (whole.row[:, 0] == np.arange(30)).all()  # each is its own nearest neighbour


def test_the_length_of_a_vector_does_not_matter():
    vectors, queries = draw(20), draw(4, seed=1)
    scales = np.random.default_rng(2).uniform(0.01, 100, (20, 1)).astype(np.float32)
    a = exact_neighbours(queries, [vectors], 5)
    b = exact_neighbours(3 * queries, [scales * vectors], 5)
    np.testing.assert_array_equal(a.row, b.row)
    np.testing.assert_allclose(a.similarity, b.similarity, atol=CLOSE)


def search_both(vectors, queries, nearest, **options):
    graph = Index.build(in_blocks(vectors, 64), len(vectors), vectors.shape[1], threads=1)
    return exact_neighbours(queries, in_blocks(vectors, 50), nearest, **options), graph(
        queries, nearest, threads=1, **options
    )


@pytest.mark.parametrize("without", [False, True])
def test_an_index_of_few_vectors_finds_all_neighbours(without):
    # The graph keeps 200 candidates, as many as there are vectors, so that none can be missed.
    vectors = draw(200, unusable=[(7, np.nan), (9, 0.0)])
    own = {"without": np.arange(20, 40)} if without else {}
    exact, graph = search_both(vectors, vectors[20:40], 8, **own)
    np.testing.assert_array_equal(graph.row, exact.row)
    np.testing.assert_allclose(graph.similarity, exact.similarity, atol=CLOSE)
    assert (graph.row[:, 0] == np.arange(20, 40)).all() == (not without)
    assert not np.isin(graph.row, (7, 9)).any()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_vectors_than_neighbours_leave_places_empty(count):
    vectors = draw(count + 1, unusable=[(0, np.nan)])
    exact, graph = search_both(vectors, draw(2, seed=5), 5)
    np.testing.assert_array_equal(graph.row, exact.row)
    assert ((graph.row >= 0).sum(axis=1) == count).all()
    assert (graph.similarity[:, count:] == -np.inf).all()


@pytest.fixture
def saved(tmp_path):
    vectors = draw(100)
    graph, path = Index.build([vectors], 100, 6, threads=1), tmp_path / "v.h5.hnsw"
    graph.save(path, "content")
    return path, graph, vectors


def test_a_saved_index_is_the_same(saved):
    path, graph, vectors = saved
    again = Index.load(path, "content", 6)
    for a, b in zip(again(vectors[:9], 4, threads=1), graph(vectors[:9], 4, threads=1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_index_of_something_else_is_refused(saved):
    path, _, _ = saved
    for arguments in (("other", 6), ("content", 7), ("content", 6, IndexOptions(links=8))):
        with pytest.raises(DataError, match="another catalogue"):
            Index.load(path, *arguments)
    with pytest.raises(DataError, match="there is no index"):
        Index.load(path.with_name("none.hnsw"), "content", 6)


def test_a_damaged_index_is_never_loaded(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 40).astype(int):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="damaged"):
            Index.load(path, "content", 6)
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="damaged"):
        Index.load(path, "content", 6)
    path.unlink()
    with pytest.raises(DataError, match="there is no index"):
        Index.load(path, "content", 6)
    path.with_name("v.h5.hnsw.json").write_text("[1")
    with pytest.raises(DataError, match=r"\.json cannot be read"):
        Index.load(path, "content", 6)
