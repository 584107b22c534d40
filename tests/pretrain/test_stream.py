import json
import tracemalloc

import numpy as np
import pytest

from specjax.errors import ConfigError
from specjax.pretrain.order import Order
from specjax.pretrain.stream import Stream
from specjax.surveys.training_rows import Rows, find
from tests.pretrain.files import write

TOWERS = ("gaia_xp",)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = [write(folder / f"{n}.h5", {"train": n}, towers=TOWERS, seed=n) for n in (150, 90)]
    return Rows(find([], paths), TOWERS)


ORDER = Order(rows=240, batch=16, seed=2, window=64)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def test_batches_are_those_of_the_order_over_epochs(rows):
    expected = [batch for window in range(2 * ORDER.windows) for batch in ORDER.rows_of(window)]
    everything = rows.read(0, 240)
    assert len(expected) > ORDER.steps_per_epoch
    for batch, wanted in zip(take(Stream(rows, ORDER), len(expected)), expected, strict=True):
        np.testing.assert_array_equal(batch["row"], wanted)
        np.testing.assert_array_equal(batch["xp_flux"], everything["xp_flux"][wanted])
        assert batch["xp_valid"].all()


@pytest.mark.parametrize("step", [0, 1, 7, 20])
def test_a_restored_stream_goes_on_where_it_was(rows, step):
    stream = Stream(rows, ORDER)
    take(stream, step)
    state = json.loads(json.dumps(stream.state()))
    expected = take(stream, 9)
    other = Stream(rows, ORDER)
    other.restore(state)
    for one, two in zip(take(other, 9), expected, strict=True):
        np.testing.assert_array_equal(one["row"], two["row"])
    assert other.state() == stream.state()


def test_processes_read_their_own_rows_of_the_same_batches(rows):
    parts = [Stream(rows, ORDER, process=process, processes=4) for process in range(4)]
    for whole in take(Stream(rows, ORDER), 20):
        shares = [next(part) for part in parts]
        np.testing.assert_array_equal(np.concatenate([share["row"] for share in shares]), whole["row"])
    assert len({json.dumps(part.state()) for part in parts}) == 1
    with pytest.raises(ConfigError, match="3 processes cannot share 8 lanes"):
        Stream(rows, ORDER, process=0, processes=3)


def peak(rows, window):
    """The peak of memory that a stream allocates over some windows, in bytes."""
    order = Order(rows=len(rows), batch=64, window=window)
    count = 3 * order.batches(0)
    tracemalloc.start()
    stream = Stream(rows, order)
    take(stream, count)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_number_of_spectra(tmp_path):
    sizes = [
        Rows(find([], [write(tmp_path / f"{n}.h5", {"train": n}, towers=TOWERS)]), TOWERS)
        for n in (2000, 20_000)
    ]
    small, large = (peak(rows, 1024) for rows in sizes)
    # A tenth: the reading thread may be a window further in one of the runs.
    assert large < 1.1 * small
    assert large < 0.25 * 20_000 * 343 * 5
