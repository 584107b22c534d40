import jax
import numpy as np
import pytest

from specjax import distributed
from specjax.distributed.exchange import _difference


def test_alone_everything_is_ones_own():
    assert distributed.is_main()
    assert distributed.share(7) == slice(0, 7)
    (mine,) = distributed.exchange({"a": np.arange(3.0)})
    np.testing.assert_array_equal(mine["a"], np.arange(3.0))
    distributed.agree({"options": {"seeds": 3}})
    distributed.synchronise("alone")
    distributed.finish()


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_shares_cover_all_items_once_and_evenly(monkeypatch, processes, count):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(list(range(count))[distributed.share(count)])
    assert [item for each in shares for item in each] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [
        ({"options": {"seeds": 3}}, {"options": {"seeds": 3}}, ""),
        (
            {"options": {"a": 1, "seeds": 3}},
            {"options": {"a": 1, "seeds": 4}},
            "seeds is 3 in process 0, but 4 in process 5",
        ),
        ({"options": {}}, {"options": {"x": 1}}, "x is None in process 0, but 1 in process 5"),
        (
            {"contents": {"stars.h5": "ab"}},
            {"contents": {"stars.h5": "cd"}},
            "stars.h5 differs between process 0 and process 5",
        ),
    ],
)
def test_the_first_difference_is_named(first, other, expected):
    assert _difference(first, other, 5) == expected
