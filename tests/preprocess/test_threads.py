import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.preprocess import desi_like, fill_model, gapped, on_own_grids
from specjax.preprocess import to_lamost
from specjax.preprocess.threads import for_each


def blas_threads():
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    with threadpool_limits(request.param, user_api="blas"):
        yield request.param


def test_every_piece_is_done_once(threads):
    done = []
    for_each(done.append, range(20))
    assert sorted(done) == list(range(20))


def test_as_many_threads_work_at_a_time_as_linear_algebra_had(threads):
    together = threading.Barrier(threads, timeout=60)  # breaks if fewer arrive
    for_each(lambda piece: together.wait(), range(threads))


def test_a_single_thread_is_that_of_the_caller():
    seen = []
    with threadpool_limits(1, user_api="blas"):
        for_each(lambda piece: seen.append(threading.get_ident()), range(3))
    assert set(seen) == {threading.get_ident()}


def test_linear_algebra_has_one_thread_meanwhile_and_its_own_number_afterwards(threads):
    seen = []
    for_each(lambda piece: seen.append(blas_threads()), range(4))
    assert seen == [1] * 4
    assert blas_threads() == threads


def test_the_error_of_the_first_piece_that_failed_is_raised(threads):
    begun = []

    def fail(piece):
        begun.append(piece)
        if piece >= 2:
            raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 2"):
        for_each(fail, range(100))
    assert len(begun) < 100
    assert blas_threads() == threads


def test_callers_take_turns():
    """The second one would otherwise lose the limit when the first one ends."""
    inside, second, leave, seen = threading.Event(), threading.Event(), threading.Event(), []
    before = blas_threads()

    def wait(piece):
        inside.set()
        assert leave.wait(60)
        seen.append("first")

    def after(piece):
        seen.append(("second", blas_threads()))

    def call_after():
        second.set()
        for_each(after, range(2))

    callers = [threading.Thread(target=for_each, args=(wait, range(1))), threading.Thread(target=call_after)]
    callers[0].start()
    assert inside.wait(60)
    callers[1].start()
    assert second.wait(60)
    leave.set()
    for caller in callers:
        caller.join()
    assert seen == ["first", ("second", 1), ("second", 1)]
    assert blas_threads() == before


@pytest.mark.parametrize("observed", [desi_like(300), on_own_grids(desi_like(40))], ids=["shared", "own"])
def test_the_input_of_the_model_does_not_depend_on_the_number_of_threads(observed):
    results = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads, user_api="blas"):
            results.append(to_lamost(observed))
    for name in ("flux", "ivar", "mask"):
        alone, *others = (getattr(result, name) for result in results)
        for other in others:
            np.testing.assert_array_equal(other, alone)


def test_neither_do_filled_pixels():
    model, arrays = fill_model(5), gapped(600)
    results = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads, user_api="blas"):
            results.append(model.apply(*arrays))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
